"""A Hugging Face text classifier: a BERT from `transformers`, whose attention and feed-forward weights are pruned.

    pip install transformers
    python examples/text_classifier.py

The model is a tiny BERT made from its configuration, and the texts are made up, so nothing is downloaded; the line to
change for a pretrained one is marked. Embeddings, norms and biases are left alone by default, the pooler and the
classifier by a pattern. Rewinding goes to the end of the second epoch, as transformers want it. It prints what is kept.
"""

import csv
import random
import sys
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lt_lightning import load_ticket, lottery

NOUNS = ["film", "play", "book", "song", "meal", "room"]
GOOD = ["lovely", "bright", "moving", "superb"]
BAD = ["dull", "poor", "noisy", "awful"]
WORDS = ["[PAD]", "the", "was", "not", "very", *NOUNS, *GOOD, *BAD]


class Classifier(L.LightningModule):
    """BERT with a head for two classes."""

    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=8,
            pad_token_id=0,
            num_labels=2,
        )
        self.bert = BertForSequenceClassification(config)  # or .from_pretrained("google-bert/bert-base-uncased")

    def training_step(self, batch):
        """The loss that the model computes for words (batch, length) and labels (batch,)."""
        words, labels = batch
        return self.bert(input_ids=words, attention_mask=(words > 0).long(), labels=labels).loss

    def validation_step(self, batch):
        """`val/loss` and `val/acc`."""
        words, labels = batch
        found = self.bert(input_ids=words, attention_mask=(words > 0).long(), labels=labels)
        self.log("val/loss", found.loss)
        self.log("val/acc", (found.logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """AdamW with a warm-up; state and schedule are rewound."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(count, seed, shuffle=False):
    """Batches of texts such as "the play was not very dull", as numbers of words, and whether they are praise."""
    draws = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        praise, negated = draws.random() < 0.5, draws.random() < 0.5
        words = ["the", draws.choice(NOUNS), "was", *["not"] * negated, *["very"] * (draws.random() < 0.5)]
        words.append(draws.choice(GOOD if praise != negated else BAD))
        texts.append([WORDS.index(word) for word in words] + [0] * (6 - len(words)))
        labels.append(int(praise))
    return DataLoader(TensorDataset(torch.tensor(texts), torch.tensor(labels)), 32, shuffle=shuffle)


def main(directory="runs/text_classifier", rounds=3, epochs=8):
    """Train the rounds that are not done yet, and print the records and where the last ticket keeps its weights."""
    training, validation = loader(512, 0, shuffle=True), loader(256, 1)
    choice = {"prunable": ["!*pooler*", "!*classifier*"], "rewind_step": "2 epochs"}
    for ticket in lottery(Classifier, rounds=int(rounds), directory=directory, **choice):
        trainer = L.Trainer(
            max_epochs=int(epochs),
            default_root_dir=ticket.directory,
            callbacks=[ticket],
            accelerator="cpu",
            logger=False,
        )
        trainer.fit(ticket.model, training, validation, ckpt_path=ticket.ckpt_path)

    with open(Path(directory, "records.csv")) as file:
        for row in csv.DictReader(file):
            accuracy = float(row["val/acc"])
            print(f"round {row['round']} density {float(row['density']):.3f} accuracy {accuracy:.4f}")
    for name, mask in load_ticket(Path(directory, f"round-{int(rounds):02}")).masks.items():
        print(f"{name} keeps {int(mask.sum())} of {mask.numel()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
