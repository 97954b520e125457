"""What is known of each metric: whether it is a share, which way is better, what it measures."""

SHARES = (
    "accuracy", "exact_match", "preference_accuracy", "reward_accuracy", "reward_auc", "macro_f1", "macro_precision",
    "macro_recall",
)  # fmt: skip
"""Metrics that are shares of 1."""

LOWER_IS_BETTER = ("loss", "perplexity")
"""All others are better when higher."""

TASK_METRICS = ("accuracy", "exact_match", "preference_accuracy", "reward_accuracy", "reward_auc", "reward")
"""What a task is about; plain text has none."""

DEFINITIONS = {
    "loss": "mean negative log-likelihood of the tokens of the answers, in nats a token; lower is better",
    "perplexity": "e to the power of the loss; lower is better",
    "accuracy": "share of rows whose generated answer names the reference's label and nothing else, whatever its case "
    "and the marks around it",
    "macro_f1": "F1 of each label, averaged over labels; a ratio without cases counts as 0",
    "macro_precision": "precision of each label, averaged over labels",
    "macro_recall": "recall of each label, averaged over labels",
    "exact_match": "share of rows whose generated answer is the reference but for white space",
    "preference_accuracy": "share of pairs whose wanted answer is likelier than the refused one, a token",
    "preference_margin": "by how much it is, in nats a token, on average",
    "reward_accuracy": "share of pairs on which training made the wanted answer likelier against the refused one",
    "reward_auc": "how often, of a wanted and an unwanted answer, training made the wanted one gain more (ROC AUC)",
    "reward_margin": "how much more likely training made wanted answers than the others, in nats an answer: DPO's "
    "implicit reward without its factor beta",
    "reward": "what a generated answer is worth on average, the recipe's reward functions weighted and summed",
}
