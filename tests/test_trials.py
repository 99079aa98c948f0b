"""What trials remember between them, and when they must not."""

import pytest
from tiny import tiny_values

from rxtone.config import check_recipe
from rxtone.trials import data_key, open_bench, reviews_key


def changed(base, table, **groups):
    values = tiny_values(base, table)
    for group, own in groups.items():
        values[group] = values.get(group, {}) | own
    return check_recipe(values, "tiny")


FURTHER = {"rating": {"column": "rating", "rule": {"great": ">=5", "awful": "<5"}, "template": "{fields}"}}


@pytest.mark.parametrize(
    ("change", "reviews", "data"),
    [
        ({"lora": {"r": 2}, "train": {"learning_rate": 0.1}}, True, True),
        ({"prompt": {"max_tokens": 32}}, True, False),
        ({"train": {"loss": "label_ce", "rating_noise": 1.0}}, True, False),
        ({"auxiliary": FURTHER}, False, False),
        ({"train": {"seed": 8}}, False, False),
    ],
)
def test_keys_tell_what_is_the_same(tiny_base, tiny_table, change, reviews, data):
    plain, other = changed(tiny_base, tiny_table), changed(tiny_base, tiny_table, **change)
    assert (reviews_key(plain) == reviews_key(other)) is reviews
    assert (data_key(plain) == data_key(other)) is data


def test_a_bench_gives_each_setting_its_own_soft_labels_and_further_tasks(tiny_base, tiny_table):
    bench = open_bench()
    plain = bench.data(changed(tiny_base, tiny_table))
    soft = bench.data(changed(tiny_base, tiny_table, train={"loss": "label_ce", "rating_noise": 1.0}))
    both = bench.data(changed(tiny_base, tiny_table, auxiliary=FURTHER))
    assert plain.train_targets is None
    assert soft.train_targets.shape == (len(plain.train), 3)
    assert [len(data.auxiliary) for data in (plain, soft, both)] == [0, 0, 1]
    assert bench.data(changed(tiny_base, tiny_table, lora={"r": 2})) is plain
