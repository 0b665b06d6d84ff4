"""Ticket files, and tickets for others and of others: models, forms of export, the Hugging Face hub."""
