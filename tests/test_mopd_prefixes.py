"""Sequences that begin alike: what is shared, what is repeated, and that nothing is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.prefixes import MIN_SAVED, Stretch, prefix_tree

LONG = tuple(range(100, 100 + MIN_SAVED))


def rebuilt(tree: tuple[Stretch, ...], sequence: int) -> tuple[int, ...]:
    """The tokens that the tree holds for one sequence, along its stretches."""
    path = sorted((s for s in tree if sequence in s.members), key=lambda s: s.start)
    assert [s.start for s in path] == [0, *(s.end for s in path[:-1])]
    parents = [None if s.parent is None else tree[s.parent] for s in path]
    assert parents == [None, *path[:-1]]
    return tuple(token for s in path for token in s.token_ids)


def test_a_common_beginning_is_one_stretch_and_each_rest_its_own() -> None:
    tree = prefix_tree([(*LONG, 1, 2), (*LONG, 1, 3), (*LONG, 4)])
    assert tree[0] == Stretch(0, LONG, None, (0, 1, 2))
    rests = {(s.token_ids, s.parent, s.members) for s in tree[1:]}
    assert rests == {((1, 2), 0, (0,)), ((1, 3), 0, (1,)), ((4,), 0, (2,))}


def test_prefixes_nest() -> None:
    tree = prefix_tree([(*LONG, *LONG, 1), (*LONG, *LONG, 2), (*LONG, 3)])
    assert [(s.token_ids, s.parent) for s in tree[:2]] == [(LONG, None), (LONG, 0)]
    assert len(tree) == 5


def test_what_saves_less_than_a_forward_pass_costs_is_repeated() -> None:
    short = LONG[:-1]
    tree = prefix_tree([(*short, 1), (*short, 2)])
    assert [(s.token_ids, s.parent) for s in tree] == [((*short, 1), None), ((*short, 2), None)]


def test_a_short_beginning_of_many_is_shared_as_it_saves_as_much() -> None:
    short = LONG[: MIN_SAVED // 4]
    tree = prefix_tree([(*short, i) for i in range(5)])
    assert tree[0].token_ids == short


def test_equal_sequences_are_one() -> None:
    assert prefix_tree([(1, 2), (1, 2)]) == (Stretch(0, (1, 2), None, (0, 1)),)


def test_a_sequence_that_another_continues_is_not_lost() -> None:
    tree = prefix_tree([(1, 2), (1, 2, 3), LONG, (*LONG, 7)])
    assert [rebuilt(tree, i) for i in range(4)] == [(1, 2), (1, 2, 3), LONG, (*LONG, 7)]


def test_no_sequences_make_no_tree() -> None:
    assert prefix_tree([]) == ()


pieces = st.lists(st.sampled_from([LONG, LONG[:9], (1,), (2,)]), min_size=1, max_size=4)
sequences = st.lists(pieces.map(lambda ps: tuple(t for p in ps for t in p)), max_size=8)


@given(sequences)
@settings(deadline=None)
def test_every_sequence_can_be_read_off_the_tree(rows: list[tuple[int, ...]]) -> None:
    tree = prefix_tree(rows)
    assert [rebuilt(tree, i) for i in range(len(rows))] == rows
    assert sum(len(s.token_ids) for s in tree) <= sum(map(len, rows))
