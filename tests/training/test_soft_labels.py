import pytest
import torch
from module_route import drawn_parameters, images, module_scores, setting
from torch import Tensor
from toys import Toy

from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.hints import HintConfig, Hints
from ghnqat_sdk.training.objective import NetworkLoss, network_loss
from ghnqat_sdk.training.prepared import prepare_network
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.teacher import load_teacher
from ghnqat_sdk.training.trainer import Trainer

BATCH, NO_NORM = 0, 2
TEACHER_SCORES = 3 * torch.randn(6, 10, generator=torch.Generator().manual_seed(1))


def learned(
    index: int, share: float, teacher_scores: Tensor | None = TEACHER_SCORES
) -> NetworkLoss:
    architecture = Toy("train", index)
    return network_loss(
        prepare_network(architecture, 10),
        drawn_parameters(architecture.build(10)),
        images(6),
        torch.arange(6),
        setting((4, 4)),
        hints=Hints(HintConfig(soft_labels=share), [6]),
        teacher_scores=teacher_scores,
    )


@pytest.mark.parametrize("index", [BATCH, NO_NORM])
def test_gradients_are_those_of_the_teachers_probabilities(index):
    found = learned(index, 1.0)
    architecture = Toy("train", index)
    parameters = drawn_parameters(architecture.build(10))
    scores, _ = module_scores(architecture.build(10), parameters, images(6), setting((4, 4)))
    loss = -(TEACHER_SCORES.softmax(1) * scores.log_softmax(1)).sum(1).mean()
    wanted = torch.autograd.grad(loss, list(parameters.values()))
    for (name, gradient), expected in zip(found.gradients.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-4, msg=name)


def test_a_share_mixes_both_kinds_of_labels():
    hard, half, soft = (learned(BATCH, share) for share in (0.0, 0.5, 1.0))
    for name, gradient in half.gradients.items():
        mean = (hard.gradients[name] + soft.gradients[name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6)


def test_the_loss_that_is_reported_is_that_of_the_labels():
    hard, soft, without = learned(BATCH, 0.0), learned(BATCH, 1.0), learned(BATCH, 1.0, None)
    assert hard.loss == soft.loss == without.loss
    assert torch.equal(*(next(iter(one.gradients.values())) for one in (hard, without)))


def test_a_run_keeps_the_scores_of_its_teacher(hinted, images):
    train = images["train"]
    cache = open_features(hinted, train, Processes())
    teacher = load_teacher(hinted.hints.teacher, train.classes)
    with torch.no_grad():
        expected = teacher(train.normalize(train.images[:20]))
    assert cache.scores.shape == (len(train), 10)
    assert (cache.scores[:20] - expected).norm() < 0.03 * expected.norm()  # bfloat16


def test_a_step_learns_from_them_where_the_config_says_so(hinted: RunConfig, images):
    features = open_features(hinted, images["train"], Processes())

    def first_weights(share: float) -> Tensor:
        hints = hinted.hints.model_copy(update={"soft_labels": share})
        config = hinted.model_copy(update={"hints": hints})
        trainer = Trainer(config, images["train"], features=features)
        list(trainer.steps(1))
        return next(trainer.model.parameters()).detach()

    assert not torch.equal(first_weights(0.0), first_weights(1.0))
