"""Training of hypernetworks, and what they are judged by. Only commands import it.

A run:
    config.py       all of a run as one value; `recipes/` holds those that have a name
    run.py          a run in its folder: resumes, checkpoints, validates
    branch.py       its state in another folder, with a rate that falls
    folder.py       the names of what the folder holds, and of the recipes
    trainer.py      the loop: sample, predict, loss, one step, average
    initial.py      the hypernetwork and the hints before the first step
    sampler.py      which networks, bit-widths and images a step sees
    shares.py       of which spaces the networks are, how often, and within which limits
    optimizers.py   what makes a step of gradients
    balance.py      how much each network counts in it, and each of its tensors
    gradients.py    these in one buffer: their mean over processes, and their clipping
    schedules.py    the rate: warm-up, stable, the end of a branch
    average.py      the running average of the weights, which users get
    state.py        what a trainer holds, as tensors and facts
    checkpoint.py   these as one file
    distributed.py  several processes
    asynchronous/   several that share weights and wait for none
    process.py      settings of the whole process
    reports.py      progress, and what a step measured
    validation.py   accuracy of unseen networks while training
    adapt.py        from the weights that ship to other classes, within some minutes
    new_classes.py  these weights with an empty class table

The loss of one network:
    losses.py       those of a step, each on images of its own
    objective.py    cross-entropy, hints, and gradients by the predicted parameters
    prepared.py     an architecture, traced and planned
    plan.py         its forward pass as steps
    steps.py        what each of them computes
    compute.py      at which bits and in which types it runs
    kernels.py      norm, activation, clip and round as one pass each way
    rounding.py     what these are told
    eager.py        these in torch's operations
    native.py       these compiled, from kernels.cpp and depthwise.cpp, which share numbers.h
    gpu/            these in Triton
    depthwise.py    depthwise convolutions with fast gradients
    pooling.py      average pools, and corners of maps, with fast gradients

The teacher:
    teacher.py      trains it
    features.py     its features over the images, kept on disk
    hints.py        compares them with what blocks of a predicted network show
    projections.py  starts the hints of a trained hypernetwork

Networks:
    spaces/         to train on and to evaluate
    evaluation.py   their accuracy with predicted parameters
"""
