"""The console scripts: parsing and printing.

main.py              `ghnqat`, with a file for each command: `demo_command.py`,
                     `predict_command.py`, `inspect_command.py`, `evaluate_command.py`,
                     `rank_command.py`, `run_command.py`
train.py             `ghnqat-train`, likewise: `train_teacher.py`, `train_run.py` (run and
                     decay), `train_async.py`, `train_adapt.py`
train_config.py      the config of a run, from options that commands share
console.py           one line for every mistake, exit statuses
arguments.py         text to values, without disk or torch
paths.py             files and folders, checked before anything slow
words.py             advice in the words of a command line
callables.py         models that a callable of the user makes
models.py            the model, the hypernetwork and the bits that options name
"""
