"""What people judged: hits of queries marked right, partly right or wrong, in a file that is whole at every
mark.

    session = Session.open("mine.json", shop, judge="ada")
    session.mark(query, hit.product, "right", "same brand, other strap")
    session.test_set()                       # a Dataset of the judged queries

The file is JSON: the dataset's name, who judged, the queries that were asked, and the judgements. It is
written anew beside its place and moved there at each mark, so that a kill costs nothing that was marked
before.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.sources.border import brief, composed, text_of
from coral_lab.sources.files import write_text

VERSION = 1

GRADES: Mapping[str, int] = {"wrong": 0, "partly": 1, "right": 2}
"""What a hit can be marked, and the relevance that it gives."""

LARGEST = 2**28
"""Bytes of a session's file."""

Key = tuple[str, str]
"""Ids of a query and a product."""


@dataclass(frozen=True)
class Judgement:
    """One judge's mark of a product as an answer to a query: its `grade` and, if given, a `word` why."""

    grade: str
    word: str = ""
    judge: str = ""

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise ValueError(f"grade is {brief(self.grade)}; use one of {', '.join(GRADES)}")

    @property
    def relevance(self) -> int:
        return GRADES[self.grade]


@dataclass(eq=False)
class Session:
    """Judgements of a dataset's products, in a file. `queries` are those that were asked, in their order, and
    `judgements` the latest mark of each pair.

    The one class of this package that changes: marking is what it is for.
    """

    file: Path
    dataset: Dataset = field(repr=False)
    judge: str = ""
    queries: dict[str, Query] = field(default_factory=dict, repr=False)
    judgements: dict[Key, Judgement] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, file: str | Path, dataset: Dataset, judge: str = "") -> "Session":
        """A session as it was left, or a new one where there is no file yet.

        Raises ItemError naming the query or judgement that does not fit, and ValueError for a file of another
        dataset, another version, or something else.
        """
        path = Path(file).expanduser()
        if not path.exists():
            return cls(path, dataset, text_of(judge, "session", "judge"))
        content = _read(path)
        if content.get("version") != VERSION or content.get("dataset") != dataset.name:
            found = f"version {brief(content.get('version'))} of {brief(content.get('dataset'))}"
            raise ValueError(f"{path} is {found}, wanted {VERSION} of {dataset.name!r}; open its own dataset")
        made = cls(path, dataset, judge or text_of(content.get("judge", ""), str(path), "judge"))
        for record in _list(path, content, "queries"):
            query = _query(record, dataset, str(path))
            if query.id in made.queries:
                raise ItemError(str(path), f"has query {brief(query.id)} twice; keep one")
            made.queries[query.id] = query
        for record in _list(path, content, "judgements"):
            key, own = _judgement(record, str(path))
            made._check_key(key)
            made.judgements[key] = own
        return made

    def _check_key(self, key: Key) -> None:
        """Raises ItemError unless it is of a query and a product that are there, for the first time."""
        query, product = map(brief, key)
        if key[0] not in self.queries:
            raise ItemError(str(self.file), f"judges query {query}, which is not in it; add the query")
        if key[1] not in self.dataset.by_id:
            problem = f"judges product {product}, which is not in {self.dataset.name}"
            raise ItemError(str(self.file), f"{problem}; open the dataset that was judged")
        if key in self.judgements:
            raise ItemError(str(self.file), f"judges product {product} for query {query} twice; keep one")

    def mark(self, query: Query, product: Product | str, grade: str | None, word: str = "") -> None:
        """Mark a product as an answer, or with None take a mark back, and save.

        A query is known by its id: an edited one needs an id of its own. Raises ItemError for a product or a
        reference that the dataset does not have, and for another query of the same id; ValueError for an
        unknown grade, OSError where the file cannot be written: then nothing is marked.
        """
        id = product.id if isinstance(product, Product) else composed(product)
        if id not in self.dataset.by_id:
            raise ItemError(f"product {id}", f"is not in {self.dataset.name}; judge what is in the pool")
        known = self.queries.get(query.id)
        own = replace(query, positives=(), hard_negatives=(), relevance={}, parent=None)
        if known is not None and _record(known) != _record(own):
            raise ItemError(
                f"query {query.id!r}", "was judged with other conditions; give this one its own id"
            )
        for reference in query.references:
            if self.dataset.by_id.get(reference.id) is None:
                problem = f"refers to product {brief(reference.id)}, which is not in {self.dataset.name}"
                raise ItemError(f"query {query.id!r}", f"{problem}; use a reference from the pool")
        before = dict(self.queries), dict(self.judgements)
        if grade is None:
            self.judgements.pop((query.id, id), None)
        else:
            judged = Judgement(grade, text_of(word, f"query {query.id!r}", "word"), self.judge)
            self.judgements.pop((query.id, id), None)  # the latest stands last
            self.judgements[query.id, id] = judged
        self.queries[query.id] = own
        try:
            self.save()
        except OSError:  # what is not in the file is not marked
            self.queries, self.judgements = before
            raise

    def under_its_id(self, query: Query) -> Query:
        """The query under the id that the same question has, in the session or in the dataset; or under one
        that no other question has.
        """
        taken = {own.id: own for own in self.dataset.queries} | self.queries
        for known in (*self.queries.values(), *self.dataset.queries):
            alike = known.class_name == query.class_name and known is taken[known.id]
            if alike and _record(known) == _record(query) | {"id": known.id}:
                return replace(query, id=known.id)
        if query.id not in taken:
            return query
        first = query.id.rpartition("-")[0]
        stem = first if first in taken else query.id
        free = (f"{stem}-{n}" for n in count(2))
        return replace(query, id=next(id for id in free if id not in taken))

    def save(self) -> None:
        """Write the file anew, in its place."""
        content = {
            "version": VERSION,
            "dataset": self.dataset.name,
            "judge": self.judge,
            "queries": [_record(query) for query in self.queries.values()],
            "judgements": [
                {"query": query, "product": product, "grade": own.grade, "word": own.word, "judge": own.judge}
                for (query, product), own in self.judgements.items()
            ],
        }
        write_text(self.file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def relevance(self, query: Query | str) -> dict[str, int]:
        """The judged products of a query: 2 for right, 1 for partly, 0 for wrong."""
        id = query if isinstance(query, str) else query.id
        return {own: found.relevance for (asked, own), found in self.judgements.items() if asked == id}

    def test_set(self, least: str = "right") -> Dataset:
        """The judged queries over the same pool, with their grades as `relevance`: products marked `least` or
        better are their positives, those marked wrong their hard negatives, the others neither. A query of
        which nothing is as good is left out and listed in `skipped`. Raises ValueError for an unknown grade.
        """
        if least not in GRADES:
            raise ValueError(f"least is {brief(least)}; use one of {', '.join(GRADES)}")
        kept, skipped = [], []
        for query in self.queries.values():
            judged = query.judged(self.relevance(query), GRADES[least])
            if judged.positives:
                kept.append(judged)
                continue
            count = len(judged.relevance)
            problem = f"none of its {count} judged products is marked {least}; judge more of them"
            skipped.append(ItemError(f"query {query.id!r}", problem))
        name = f"{self.dataset.name}, judged"
        return replace(self.dataset, name=name, queries=tuple(kept), skipped=tuple(skipped))

    def __repr__(self) -> str:
        counts = f"{len(self.judgements):,} judgements of {len(self.queries):,} queries"
        return f"Session({str(self.file)!r}: {counts}, {self.dataset.name})"


def merged(sessions: Sequence[Session], file: str | Path) -> Session:
    """Several people's judgements as one session, not yet saved: of a pair that several judged the mark that
    most gave, and where that is no single one the lowest of them. `judge` and `word` are of all who judged a
    pair, whatever their mark.

    Raises ValueError for none, for what `check_same` refuses, and for a `file` that is one of theirs.
    """
    check_same(sessions)
    first, place = sessions[0], Path(file).expanduser()
    if any(place.resolve() == own.file.resolve() for own in sessions):
        raise ValueError(f"{place} is one of the sessions' own, and saving would replace it; name another")
    made = Session(place, first.dataset, _joined(" + ", (own.judge for own in sessions)))
    marks: dict[Key, list[Judgement]] = {}
    for session in sessions:
        made.queries |= session.queries
        for key, own in session.judgements.items():
            marks.setdefault(key, []).append(own)
    made.judgements = {key: _agreed(own) for key, own in marks.items()}
    return made


def check_same(sessions: Sequence[Session]) -> None:
    """Raises ValueError for no sessions, sessions of different datasets or of different products, one that
    comes twice, and two that asked something else under one id.
    """
    if not sessions:
        raise ValueError("0 sessions are given; give at least one")
    first = sessions[0].dataset
    asked: dict[str, Query] = {}
    for place, session in enumerate(sessions):
        if any(own is session for own in sessions[:place]):
            raise ValueError(f"{session.file} comes twice, and would count as two people; give it once")
        if session.dataset.name != first.name or session.dataset.by_id.keys() != first.by_id.keys():
            names = f"{first.name!r} and {session.dataset.name!r}"
            raise ValueError(f"sessions are of {names}, or of other products; take those of one dataset")
        for id, query in session.queries.items():
            if _record(asked.setdefault(id, query)) != _record(query):
                raise ValueError(f"query {brief(id)} is another in {session.file}; give it its own id")


def _agreed(marks: Sequence[Judgement]) -> Judgement:
    counts = {grade: sum(own.grade == grade for own in marks) for grade in GRADES}
    grade = max(GRADES, key=lambda own: (counts[own], -GRADES[own]))
    words, judges = ([own.word for own in marks], [own.judge for own in marks])
    return Judgement(grade, _joined("; ", words), _joined(" + ", judges))


def _joined(sign: str, texts: Iterable[str]) -> str:
    """The texts that are there, each once."""
    return sign.join(dict.fromkeys(filter(None, texts)))


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"has more than {LARGEST:,} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no session ({error}); name another file") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no session but {brief(found)}; name another file")
    return found


def _list(file: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = content.get(name)
    if not isinstance(found, list) or not all(isinstance(own, dict) for own in found):
        raise ValueError(f"{file} has {name} {brief(found)}, wanted a list of objects; it is damaged")
    return found


def _record(query: Query) -> dict[str, Any]:
    conditions = [
        {"attribute": own.attribute, "value": own.value, "product": own.product.id}
        for own in query.conditions
    ]
    known = {"id": query.id, "class": query.class_name, "text": query.text, "language": query.language}
    return {**known, "conditions": conditions}


def _query(record: Mapping[str, Any], dataset: Dataset, place: str) -> Query:
    id, name, text, language = (
        text_of(record.get(key), place, key) for key in ("id", "class", "text", "language")
    )
    asked = record.get("conditions")
    if not isinstance(asked, list) or not all(isinstance(own, dict) for own in asked):
        raise ItemError(place, f"query {brief(id)} has conditions {brief(asked)}, wanted a list of objects")
    conditions = []
    for own in asked:
        words = [text_of(own.get(key), place, key) for key in ("attribute", "value", "product")]
        product = dataset.by_id.get(words[2])
        if product is None:
            problem = f"query {brief(id)} refers to product {brief(words[2])}, which is not in {dataset.name}"
            raise ItemError(place, f"{problem}; open the dataset that was judged")
        conditions.append(Condition(words[0], product, words[1]))
    return Query(id, name, tuple(conditions), text, language=language)


def _judgement(record: Mapping[str, Any], place: str) -> tuple[Key, Judgement]:
    query, product, grade, word, judge = (
        text_of(record.get(key), place, key) for key in ("query", "product", "grade", "word", "judge")
    )
    if grade not in GRADES:
        raise ItemError(place, f"query {brief(query)} has grade {brief(grade)}; use {', '.join(GRADES)}")
    return (query, product), Judgement(grade, word, judge)
