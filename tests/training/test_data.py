import numpy as np

from rxtone.model.batches import ReviewDataset
from rxtone.model.scoring import LabelTokens
from rxtone.training.data import Auxiliary, TrainingData

TOKENS = LabelTokens(((10,), (11,)), with_eos=False, eos=1)
PROMPTS = [[5, 1], [6, 6, 1], [7, 1], [8, 8, 8, 1]]


def test_a_part_takes_every_task_and_target_of_its_rows():
    train = ReviewDataset(PROMPTS, [[10, 1], [11, 1], [10, 1], [11, 1]])
    other = ReviewDataset([[9, *prompt] for prompt in PROMPTS], [[12, 1]] * 4)
    further = Auxiliary(other, np.array([3, 2, 1, 0]), TOKENS, 0.5, 0.5)
    targets = np.eye(4, 2, dtype=np.float32)
    data = TrainingData(
        train, np.array([0, 1, 0, 1]), train, np.array([0, 1, 0, 1]), ("a", "b"), TOKENS, 0, (further,), targets
    )
    part = data.part(np.array([3, 1]))
    assert [prompt.tolist() for prompt in part.train.prompts] == [PROMPTS[3], PROMPTS[1]]
    assert [target.tolist() for target in part.train.targets] == [[11, 1], [11, 1]]
    assert part.train_classes.tolist() == [1, 1]
    assert part.train_targets.tolist() == [[0, 0], [0, 1]]
    (own,) = part.auxiliary
    assert [prompt.tolist() for prompt in own.reviews.prompts] == [[9, *PROMPTS[3]], [9, *PROMPTS[1]]]
    assert (own.classes.tolist(), own.share) == ([0, 2], 0.5)
    assert part.validation is data.validation
