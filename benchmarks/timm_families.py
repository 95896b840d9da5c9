"""What of timm's families of CNNs is predicted, and whether calibration keeps their outputs.

    pip install --no-deps timm
    python benchmarks/timm_families.py --data data/cifar10
    python benchmarks/timm_families.py --data data/cifar10 resnet convnext nfnet

One member of each family: the smallest that is a CNN, which has two convolutions or more, and no
attention or other product of two activations. It is predicted at W4/A4 with the weights that ship
and calibrated on 256 training images, enlarged to 64 pixels, or more where it takes no less. On
the same images, a row says how far the calibrated outputs are from those with batch statistics of
all of them (norm of the difference, in percent), and how often both have their largest logit at
the same class. Lines go to benchmarks/results/timm_families.jsonl as they come; nothing is measured
twice, and benchmarks/results/timm_families.json is written at the end.
"""
