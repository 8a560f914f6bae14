"""What a model must beat to be worth serving: the commonest answer, and a linear model on words.

label      commonest label                 logistic regression on TF-IDF
labels     the set of labels in most rows  the same, one label against the rest
number     the mean                        ridge regression on TF-IDF
tags       the commonest tag               the commonest tag of each word, as in training
image      commonest label                 logistic regression on the pixels
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from autoglm.contracts.task import TASKS, TaskForm

LABEL = TASKS["text-classification"]
# Words are runs of letters or digits; a text in a script without spaces is cut into characters.
WORD = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"


def majority_predictions(
    train_answers: Sequence[Any], inputs: Sequence[Any], form: TaskForm = LABEL
) -> list[Any]:
    """The commonest training answer (first by name among equals) for each of `inputs`."""
    if form.answers == "number":
        return [sum(train_answers) / len(train_answers)] * len(inputs)
    if form.answers == "tags":
        tag = _commonest(tag for tags in train_answers for tag in tags)
        return [(tag,) * len(tokens) for tokens in inputs]
    return [_commonest(train_answers)] * len(inputs)


def majority_shares(
    train_answers: Sequence[Any], inputs: Sequence[Any], labels: Sequence[str]
) -> list[dict[str, float]]:
    """What knows nothing but how common each label is says so of each of `inputs`."""
    counts = Counter(
        label
        for answer in train_answers
        for label in ([answer] if isinstance(answer, str) else answer)
    )
    shares = {label: counts[label] / max(1, len(train_answers)) for label in labels}
    return [shares] * len(inputs)


def _commonest(answers: Any) -> Any:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], _name(answer)))


def _name(answer: Any) -> list[str]:
    return sorted(answer) if isinstance(answer, frozenset) else [answer]


def linear_predictions(
    train_inputs: Sequence[Any],
    train_answers: Sequence[Any],
    inputs: Sequence[Any],
    form: TaskForm = LABEL,
) -> list[Any]:
    """What a linear model learns from the training rows, as scikit-learn's tutorials do it. Images
    are arrays of pixels.
    """
    if form.answers == "tags":
        return _tags_by_word(train_inputs, train_answers, inputs)
    import sklearn.linear_model  # noqa: F401  # only what is loaded can be limited
    from threadpoolctl import threadpool_limits

    learn = _by_pixels if form.reads == "image" else partial(_by_words, form=form)
    try:
        # Vectors this short keep no second thread busy: it waits, at the price of a core.
        with threadpool_limits(1, user_api="blas"):
            return learn(train_inputs, train_answers, inputs)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        # Texts without a single word: the linear model can know no more than the majority.
        return majority_predictions(train_answers, inputs, form)


def _by_words(
    train_inputs: Sequence[Any], train_answers: Sequence[Any], inputs: Sequence[Any], form: TaskForm
) -> list[Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    vectorizer = TfidfVectorizer(
        token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, max_features=50_000
    )
    words, asked = vectorizer.fit_transform(train_inputs), vectorizer.transform(inputs)
    if form.answers == "number":
        return list(map(float, Ridge().fit(words, train_answers).predict(asked)))
    plain = LogisticRegression(C=10.0, max_iter=1000)
    if form.answers != "labels":
        return [str(label) for label in plain.fit(words, train_answers).predict(asked)]
    names = MultiLabelBinarizer().fit(train_answers)
    table = names.transform(train_answers)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Label .* is present in"
        )  # then it is said always
        model = OneVsRestClassifier(plain).fit(words, table)
    return [frozenset(map(str, row)) for row in names.inverse_transform(model.predict(asked))]


def _by_pixels(
    train_inputs: Sequence[Any], train_answers: Sequence[Any], inputs: Sequence[Any]
) -> list[Any]:
    """Of images as arrays (channels, height, width), thinned out to about 16 pixels a side."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    step = max(1, train_inputs[0].shape[-1] // 16)
    known, asked = (
        np.stack([image[:, ::step, ::step].ravel() for image in images])
        for images in (train_inputs, inputs)
    )
    model = LogisticRegression(C=0.01, max_iter=1000).fit(known, train_answers)
    return [str(label) for label in model.predict(asked)]


def _tags_by_word(
    train_inputs: Sequence[Any], train_answers: Sequence[Any], inputs: Sequence[Any]
) -> list[Any]:
    counts: dict[str, list[str]] = defaultdict(list)
    for tokens, tags in zip(train_inputs, train_answers, strict=True):
        for token, tag in zip(tokens, tags, strict=True):
            counts[token].append(tag)
    best = {token: _commonest(tags) for token, tags in counts.items()}
    unknown = _commonest(tag for tags in train_answers for tag in tags)
    return [tuple(best.get(token, unknown) for token in tokens) for tokens in inputs]
