"""What can be read off an embedding: linear probes for each attribute, on products and on queries.

A probe is a logistic regression on frozen embeddings (Alain and Bengio, arXiv 1610.01644). What it cannot
find, a dot product cannot use.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float32
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from coral_lab.encoder import encode
from coral_lab.metrics import estimate
from coral_lab.models.model import Model
from coral_lab.query import Dataset, Product, Query, Traits

FEWEST = 40  # labelled items on either side; with fewer a probe says nothing


def probe_checkpoint(
    model: Model, train: Dataset, test: Dataset, products: int = 4000, queries: int = 6000, unseen: int = 1000
) -> pd.DataFrame:
    """Probes trained on the first products and queries of `train`, and measured on up to `unseen` of `test`.

    A product has a label where its picture or title shows the attribute, a query where a condition asks for
    it. Columns: item, attribute, n, accuracy, low, high, chance.
    """
    kinds: dict[str, tuple[Sequence, Sequence, Callable]] = {
        "product": (train.products[:products], test.products[:unseen], partial(_shown, train.traits)),
        "query": (train.queries[:queries], test.queries[:unseen], _asked),
    }
    tables = []
    for name, (seen, new, labels) in kinds.items():
        rows = probe(
            encode(model, seen),
            [labels(item) for item in seen],
            encode(model, new),
            [labels(item) for item in new],
        )
        tables.append(rows.assign(item=name))
    return pd.concat(tables, ignore_index=True)[
        ["item", "attribute", "n", "accuracy", "low", "high", "chance"]
    ]


def _shown(traits: Traits, product: Product) -> dict[str, str]:
    shown = traits.shown(product)
    return {name: values[0] for name, values in product.attributes.items() if values and name in shown}


def _asked(query: Query) -> dict[str, str]:
    return {condition.attribute: condition.value for condition in query.conditions}


def probe(
    train: Float32[np.ndarray, "train dim"],
    train_labels: Sequence[dict[str, str]],
    test: Float32[np.ndarray, "test dim"],
    test_labels: Sequence[dict[str, str]],
) -> pd.DataFrame:
    """Accuracy of a linear probe for each attribute that at least 40 items on either side have, with 95%
    intervals.

    `chance` is what always saying the commonest value of `train` would get.
    """
    rows = []
    for attribute in sorted({name for labels in train_labels for name in labels}):
        seen, new = (
            [i for i, own in enumerate(labels) if attribute in own] for labels in (train_labels, test_labels)
        )
        values = np.array([train_labels[i][attribute] for i in seen])
        if min(len(seen), len(new)) < FEWEST or len(set(values)) < 2:
            continue
        wanted = np.array([test_labels[i][attribute] for i in new])
        right = _fit(train[seen], values).predict(test[new]) == wanted
        commonest = max(set(values), key=values.tolist().count)
        found = estimate(right.astype(float))
        rows.append(
            {
                "attribute": attribute,
                "n": found.n,
                "accuracy": found.mean,
                "low": found.low,
                "high": found.high,
                "chance": float((wanted == commonest).mean()),
            }
        )
    return pd.DataFrame(rows)


def _fit(rows: np.ndarray, values: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():  # 300 iterations are enough to tell what is there from what is not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1000.0, max_iter=300).fit(rows, values)
