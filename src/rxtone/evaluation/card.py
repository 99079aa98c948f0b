"""The model card: README.md of an adapter folder, rendered from the recipe and metrics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Mapping

TEMPLATE = """\
---
base_model: {{ base }}
library_name: peft
pipeline_tag: text-classification
tags: [lora, t5, sentiment, rxtone]
---
# {{ labels | join(" / ") }} for reviews: a LoRA adapter on {{ base }}

Given a review, this adapter scores the labels {{ labels | join(", ") }} and answers with the most
probable one. Labels are scored, never generated, so the answer is always one of them.

## Figures

On {{ metrics.n }} reviews ({{ metrics.split }}):

| | accuracy | macro-F1 | kappa |
|---|---|---|---|
| this adapter | {{ fig(metrics.accuracy) }} | {{ fig(metrics.macro_f1) }} | {{ fig(metrics.kappa) }} |
{% for baseline in metrics.baselines.values() -%}
| {{ baseline.title }} | {% if "unavailable" in baseline %}unavailable | | {% else %}{{ fig(baseline.accuracy) }} | \
{{ fig(baseline.macro_f1) }} | {{ fig(baseline.kappa) }} {% endif %}|
{% endfor %}
| label | precision | recall | F1 | reviews |
|---|---|---|---|---|
{% for label, row in metrics.per_class.items() -%}
| {{ label }} | {{ fig(row.precision) }} | {{ fig(row.recall) }} | {{ fig(row.f1) }} | {{ row.support }} |
{% endfor %}
## How it was trained

Table `{{ source }}` (sha256 `{{ sha256[:16] }}`), {{ rows }} training reviews. LoRA r={{ lora.r }},
alpha={{ lora.lora_alpha }}, dropout={{ lora.lora_dropout }} on {{ lora.target_modules | join(", ") }}
({{ lora.variant }}). AdamW at {{ train.learning_rate }}, up to {{ train.num_train_epochs }} epochs, seed
{{ train.seed }}. `config.yaml` of the run holds every setting.

## How to use it

```python
import rxtone

classifier = rxtone.load("PATH_OF_THIS_FOLDER")
print(classifier.predict([{{ example }}]))
```

Without rxtone it opens as any PEFT adapter: `PeftModel.from_pretrained(base_model, "PATH_OF_THIS_FOLDER")`;
the prompt is in `classifier.json`.

## Limits

It reads the words of one review and nothing else. It knows nothing about the truth of what a patient
writes, is no medical advice, and must not decide about anyone's treatment. The figures hold for reviews
like those it was tested on.
"""


def render_card(*, base: str, recipe: Mapping[str, Any], record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Render the card.

    Args:
        base: Name of the base.
        recipe: The resolved recipe as plain values.
        record: The content of data.json.
        metrics: The content of metrics.json.

    Returns:
        Markdown with a YAML head as the hub expects.
    """
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701  # Markdown, no review text
    fields = dict.fromkeys(recipe["data"]["text_fields"], "...")
    return environment.from_string(TEMPLATE).render(
        base=base, labels=metrics["labels"], metrics=metrics, lora=recipe["lora"], train=recipe["train"],
        source=_shown(record["tables"]["train"]["source"]), sha256=record["tables"]["train"]["sha256"],
        rows=record["splits"]["train"]["rows"], example=json.dumps(fields, ensure_ascii=False),
        fig=lambda value: f"{value:.3f}",
    )  # fmt: skip


def _shown(source: str) -> str:
    """The table by name: an adapter that is shared must not tell the folders of whoever trained it."""
    return source if source.startswith("hf:") else Path(source).name
