"""What a model must beat to be worth serving: the majority class, and a linear model on words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def majority_predictions(train_labels: Sequence[str], num_rows: int) -> list[str]:
    """The commonest training label (first by name among equals), `num_rows` times."""
    counts = Counter(train_labels)
    best = min(counts, key=lambda label: (-counts[label], label))
    return [best] * num_rows


def linear_predictions(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """TF-IDF of words and word pairs into logistic regression, as scikit-learn's tutorials do it.

    Words are runs of letters or digits; a text in a script without spaces is cut into characters.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pattern = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"
    vectorizer = TfidfVectorizer(
        token_pattern=pattern, ngram_range=(1, 2), sublinear_tf=True, max_features=50_000
    )
    model = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000))
    try:
        model.fit(list(train_texts), list(train_labels))
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        # Texts without a single word: the linear model can know no more than the majority.
        return majority_predictions(train_labels, len(texts))
    return [str(label) for label in model.predict(list(texts))]
