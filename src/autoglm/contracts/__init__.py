"""What two stages share: one frozen record per file, each with `project`.

change_event → dataset_version → trigger_event → run_spec → stage_chain, trial
             → evaluation_report → model_version → rollout · measurement · prediction · feedback
"""
