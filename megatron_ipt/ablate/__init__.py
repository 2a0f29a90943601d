"""Arms of blend weights, each an ordinary run of a tiny model, compared seed by seed.

    study.py    STUDY.yaml as typed settings, and what must hold between it and its recipe
    runs.py     (arm, seed) -> the recipe of an ordinary run in a folder of its own
    shares.py   what each run's stream really drew, counted twice, against its arm's weights
    results.py  final held-out bits per byte -> means, paired differences, the noise between seeds

The first two are pure and light; the command line runs the steps (`megatron_ipt/cli/ablate.py`), the report room draws
the page (`megatron_ipt/report/ablation.py`).
"""
