"""Train on a table of your own, judge, ask. From the checkout's root: python examples/script.py [KEY=VALUE ...]."""

import sys

import rxtone

run = rxtone.train("examples/tickets/recipe.yaml", overrides=sys.argv[1:], out="runs/tickets")
classifier = rxtone.load(run)

tickets = rxtone.read_reviews(classifier, "examples/tickets/test.csv")
metrics = rxtone.evaluate(classifier, tickets).metrics
print(f"macro-F1 {metrics['macro_f1']:.3f} on {metrics['n']} tickets")

for answer in classifier.predict([{"Subject": "Paid twice", "Message": "Please return one."}, "I cannot log in."]):
    print(answer.label, {label: round(share, 3) for label, share in answer.probabilities.items()})
