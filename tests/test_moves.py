import torch

from ghnqat_sdk.data import Moves, draw_moves, move_images


def test_an_image_is_flipped_then_moved_down_and_right_over_zeros():
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    moves = Moves(torch.tensor([False, True]), torch.tensor([1, -2]), torch.tensor([0, 1]))
    plain, flipped = move_images(image.repeat(2, 1, 1, 1), moves).squeeze(1).int().tolist()
    assert plain == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert flipped == [[0, 9, 8], [0, 0, 0], [0, 0, 0]]


def test_moves_shift_and_flip_each_image_on_its_own():
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    moves = draw_moves(64, 1, torch.Generator().manual_seed(0))
    moved = move_images(image.repeat(64, 1, 1, 1), moves)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    crops = [padded[y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
    crops += [crop.flip(1) for crop in crops]
    seen = {next(i for i, crop in enumerate(crops) if torch.equal(crop, one[0])) for one in moved}
    assert len(seen) > 12


def test_moves_are_drawn_evenly_up_to_the_padding():
    moves = draw_moves(3000, 2, torch.Generator().manual_seed(0))
    for shifts in (moves.rows, moves.columns):
        assert ((shifts + 2).bincount(minlength=5) / 600 - 1).abs().max() < 0.15
    assert abs(moves.flip.float().mean().item() - 0.5) < 0.05


def test_raw_and_normalized_images_move_alike_whatever_their_shape_and_layout():
    images = torch.randint(256, (6, 3, 5, 9), dtype=torch.uint8)
    moves = draw_moves(6, 12, torch.Generator().manual_seed(0))  # some leave the image altogether
    raw, floats = move_images(images, moves), move_images(images.float(), moves)
    last = move_images(images.float().contiguous(memory_format=torch.channels_last), moves)
    assert raw.dtype == torch.uint8
    assert torch.equal(raw.float(), floats) and torch.equal(last, floats)
    assert floats.is_contiguous(memory_format=torch.channels_last)


def test_without_padding_images_are_only_flipped():
    images = torch.rand(8, 3, 4, 4)
    moves = draw_moves(8, 0, torch.Generator().manual_seed(0))
    expected = torch.where(moves.flip[:, None, None, None], images.flip(3), images)
    assert torch.equal(move_images(images, moves), expected)


def test_moves_repeat_with_their_generator_and_leave_the_global_one_alone():
    images, before = torch.rand(4, 3, 8, 8), torch.get_rng_state()
    first, second = (
        move_images(images, draw_moves(4, 2, torch.Generator().manual_seed(3))) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
