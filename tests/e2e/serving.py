"""JupyterLab or Notebook 7 served to a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
NEEDS_CHROMIUM = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="needs Debian's chromium: apt-get install chromium fonts-noto-core"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
]
READY = """() => { const session = window.jupyterapp.shell.currentWidget?.sessionContext;
                   return session?.isReady && session.session?.kernel?.status === 'idle'; }"""
TOKEN = "a-token-for-the-test"
SHOTS = Path("build/screenshots")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, and a place for its screenshots."""
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def new_page(browser, width: int, height: int):
    """A page whose `problems` collect what scripts throw."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    return page


@contextmanager
def serving(folder: Path, app: str = "lab") -> Iterator[tuple[str, str]]:
    """Address and token of a server on a free port that shows a folder, with the workbench's own settings."""
    settings = folder / "settings"
    settings.mkdir()
    shutil.copy("notebooks/overrides.json", settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = {"lab": "LabApp", "notebook": "JupyterNotebookApp"}[app]
    command = [
        sys.executable,
        "-m",
        "jupyter",
        app,
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        f"--{name}.app_settings_dir={settings}",
        f"--{name}.user_settings_dir={folder / 'user'}",
        f"--{name}.workspaces_dir={folder / 'workspaces'}",
        f"--{name}.expose_app_in_browser=True",
    ]
    with (folder / "server.log").open("w") as log:
        environment = os.environ | {"TQDM_DISABLE": "1"}
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/api/status?token={TOKEN}", timeout=5)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail((folder / "server.log").read_text()[-2000:])
        yield url, TOKEN
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
