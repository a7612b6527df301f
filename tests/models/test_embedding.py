"""The plain path, which asks transformers for nothing private, makes the same embeddings as the quick one."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from coral_lab import Product, Settings, encode, load
from coral_lab.encoder import encode_all
from coral_lab.models import loading

PRIVATE = ("batching", "cpu_attention", "cpu_linear", "last_layer", "prefixes", "window_attention")


@pytest.fixture(scope="module")
def plain(random_folder):
    return load(random_folder, quick=False)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_both_paths_give_one_embedding(plain, random_folder, shop, mixed_queries, batch_size):
    items = [*mixed_queries, *shop.products[:6], *shop.queries[:4]]
    quick = encode(load(random_folder, quick=True), items)
    found = encode(plain, items, settings=Settings(batch_size=batch_size))
    np.testing.assert_allclose(found, quick, atol=1e-5)


def test_the_plain_path_needs_no_module_with_private_names(random_folder, shop):
    blocked = "".join(f"sys.modules['coral_lab.models.{name}'] = None\n" for name in PRIVATE)
    code = (
        f"import sys\n{blocked}import coral_lab as cl\nshop = cl.dataset('mini')\n"
        f"model = cl.load({str(random_folder)!r}, quick=False)\n"
        "print(cl.encode(model, shop.products[:2]).sum(1).tolist())\n"
        f"cl.load({str(random_folder)!r}, quick=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = encode(load(random_folder), shop.products[:2]).sum(1)
    np.testing.assert_allclose(eval(done.stdout), expected, atol=1e-4)
    assert "ModuleNotFoundError: import of coral_lab.models." in done.stderr  # the quick one does need them


@pytest.mark.parametrize(
    ("version", "quick"), [("5.20.0", True), ("5.23.1", True), ("5.24.0", False), ("6.0", False)]
)
def test_a_version_that_is_not_known_to_fit_gets_the_plain_path(
    random_folder, version, quick, monkeypatch, caplog
):
    monkeypatch.setattr(loading.transformers, "__version__", version)
    assert load(random_folder).quick is quick
    assert ("the plain, slower way" in caplog.text) is not quick
    assert loading.load(random_folder, quick=True).quick


def test_what_cannot_be_used_is_named_and_the_others_are_done(plain, shop):
    broken = Product("broken", "", b"no picture")
    long = replace(shop.products[0], id="long", title="word1 " * 40_000)
    items = [shop.products[0], broken, long, shop.products[1]]
    found = encode_all(plain, items, settings=Settings(on_error="skip"))
    assert [(place, error.item) for place, error in found.skipped] == [
        (1, "product broken"),
        (2, "product long"),
    ]
    alone = encode(plain, [shop.products[0], shop.products[1]])
    np.testing.assert_allclose(found.embeddings[[0, 3]], alone, atol=1e-5)
