"""A process that compacts a table, and dies where it is told to."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from feature_tables import add, rows, table_at

table = table_at(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    add(table, *rows(number, number + 1))
table._compact()
