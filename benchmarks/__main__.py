"""Run every benchmark, one after the other."""

from benchmarks import (
    accuracy_floors,
    attention,
    config_load,
    first_hour,
    streaming,
    training_speed,
    trial_overhead,
)

config_load.main()
first_hour.main()
accuracy_floors.main()
attention.main()
training_speed.main()
trial_overhead.main()
streaming.main()
