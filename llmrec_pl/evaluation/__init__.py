"""All-ranking evaluation, predictions and reports; knows no model."""
