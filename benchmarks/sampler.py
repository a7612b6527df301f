"""How quickly batches are made from a MERIT folder, beside how quickly a model learns from them.

coral-lab data --out FOLDER            MERIT-mini in MERIT's files
python benchmarks/sampler.py FOLDER    pairs a second: drawn, written as prompts, pictures decoded and
                                       processed; and a Coral step of coral-mini's base with ready batches

No picture is seen twice: each step has a sampler of its own, whose pictures nobody kept.
"""

import sys
import time

from table import keep, ratios, row

import coral_lab as cl
from coral_lab.training import Coral, Learner, StepConfig, decoders, gradients
from coral_lab.training.from_data import batch_of
from coral_lab.training.pairs import pair_sampler, plain_pairs

STEPS = 8
STEP = StepConfig(Coral(), batch_size=128, batches="mixed", negatives=1)


def main(folder: str) -> list[dict]:
    model, shop = cl.load("mini-base", device="cpu"), cl.dataset(folder, "train")
    model.pixels.limit = 0  # nothing is kept, as where a dataset is larger than memory
    learner = Learner(model, decoders(model, STEP.coral), STEP.coral)
    pairs = pair_sampler(
        shop, plain_pairs(shop, STEP.negatives), STEP.batch_size, STEPS, batches=STEP.batches
    )
    model.network.train()
    making, learning = [], []
    for number in range(STEPS + 1):
        started = time.perf_counter()
        batch = batch_of(learner, pairs(number), STEP, 0, number)
        made = time.perf_counter()
        gradients(learner, batch)
        model.network.zero_grad()
        if number:  # the first is warm-up
            making.append(made - started)
            learning.append(time.perf_counter() - made)
    size = STEP.batch_size
    return [
        row("batches made: pairs a second", [size / seconds for seconds in making]),
        row("a Coral step of coral-mini: pairs a second", [size / seconds for seconds in learning]),
        row("batches made / learnt from", ratios(learning, making), "≥ 3"),
    ]


if __name__ == "__main__":
    print(keep("sampler", main(sys.argv[1])).to_string(index=False))
