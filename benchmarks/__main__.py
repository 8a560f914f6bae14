"""Run every benchmark, one after the other."""

from benchmarks import first_hour

first_hour.main()
