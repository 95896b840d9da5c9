"""Training by processes that share weights and wait for none, as Hogwild (Recht et al. 2011) but
with a lock: a network that is slow to prepare holds up its own process alone.

    run.py     goes on with a run for some minutes, and lets its weights decay
    team.py    the processes: begun, watched, and stopped
    plan.py    how long, and when the rate falls
    worker.py  what each process does
    pool.py    the weights they share, and gradients on their way to them
    losses.py  with networks on a GPU, and the hypernetwork beside it
"""
