"""Run every benchmark, one after the other."""

from benchmarks import accuracy_floors, first_hour

first_hour.main()
accuracy_floors.main()
