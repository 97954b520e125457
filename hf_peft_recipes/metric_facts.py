"""What is known of each metric: whether it is a share, which way is better, what it measures."""

SHARES = (
    "accuracy", "exact_match", "numeric_match", "entity_f1", "entity_precision", "entity_recall", "rouge1", "rouge2",
    "rougeL", "preference_accuracy", "reward_accuracy", "reward_auc", "macro_f1", "macro_precision", "macro_recall",
    "precision", "recall", "f1", "tag_accuracy", "score_accuracy",
)  # fmt: skip
"""Metrics that are shares of 1."""

LOWER_IS_BETTER = ("loss", "perplexity")
"""All others are better when higher."""

TASK_METRICS = (
    "accuracy", "exact_match", "numeric_match", "entity_f1", "rougeL", "preference_accuracy", "reward_accuracy",
    "reward_auc", "tag_accuracy", "score_accuracy", "reward",
)  # fmt: skip
"""What a task is about; plain text has none."""

ROWS_RIGHT = ("accuracy", "exact_match", "numeric_match", "preference_accuracy", "reward_accuracy", "score_accuracy")
"""Of these, the shares of rows that are right."""

FEW_LABELS = 10
"""Tables of single labels have so many at the most; of more, records alone tell."""

DEFINITIONS = {
    "loss": "mean negative log-likelihood of the tokens of the answers, in nats a token; lower is better",
    "perplexity": "e to the power of the loss; lower is better",
    "accuracy": "share of rows whose generated answer names the reference's label and nothing else, whatever its case "
    "and the marks around it",
    "macro_f1": "F1 of each label, averaged over labels; a ratio without cases counts as 0",
    "macro_precision": "precision of each label, averaged over labels",
    "macro_recall": "recall of each label, averaged over labels",
    "exact_match": "share of rows whose generated answer is the reference but for white space",
    "numeric_match": "share of rows whose generated answer ends in the reference's number, behind `####` or last "
    "of all",
    "tag_accuracy": "share of words that are given their own tag",
    "score_accuracy": "share of pairs whose wanted answer gets the higher score",
    "score_margin": "by how much it is higher, on average",
    "entity_f1": "F1 of entities, words (or place) and kind alike, over all rows and kinds; without entities it counts "
    "as 0",
    "entity_precision": "share of the entities found that are right",
    "entity_recall": "share of the references' entities that were found",
    "rouge1": "F1 of the words that the generated answer shares with the reference, averaged over rows "
    "(rouge-score without its stemmer; words of any script, of those without spaces each character)",
    "rouge2": "the same of pairs of neighbouring words",
    "rougeL": "the same of the longest common subsequence of words",
    "bleu": "BLEU over all rows, 0 to 100 (sacrebleu)",
    "chrf": "chrF2 over all rows, 0 to 100 (sacrebleu)",
    "preference_accuracy": "share of pairs whose wanted answer is likelier than the refused one, a token",
    "preference_margin": "by how much it is, in nats a token, on average",
    "reward_accuracy": "share of pairs on which training made the wanted answer likelier against the refused one",
    "reward_auc": "how often, of a wanted and an unwanted answer, training made the wanted one gain more (ROC AUC)",
    "reward_margin": "how much more likely training made wanted answers than the others, in nats an answer: DPO's "
    "implicit reward without its factor beta",
    "reward": "what a generated answer is worth on average, the recipe's reward functions weighted and summed",
}
