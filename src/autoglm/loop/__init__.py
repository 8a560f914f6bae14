"""The way, in four arrows. Read `run_loop.py` first.

change_to_dataset → dataset_to_run → run_to_candidate → candidate_to_release
"""
