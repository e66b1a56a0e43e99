"""Which directory a program that walks a tree opens next.

It saw the directories in the order of their inode numbers. One that descends as it goes (find, du, os.walk) takes the first of
those inside of the directory that it has read, and after the last the next beside that. One that keeps a stack takes the last
first, so its way is the same backwards. Which of the two it is, is seen when two of one directory were opened.

What is told is a guess: who relies on it finds out whether it comes true. Nothing here outlives the worker.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from s3mgrd.cache.nodes import ROOT, Inode, Node, NodeTable

MAX_REMEMBERED: Final = 4096
"""Directories of which the next is remembered, and of which one inside was opened, at about 100 bytes each."""
SOME: Final = 64
"""Directories that are looked for at a time."""


class Order:
    """Guesses at the steps of walks through one mount."""

    def __init__(self, nodes: NodeTable) -> None:
        self._nodes: Final = nodes
        self._following: dict[Inode, Inode | None] = {}
        """By directory: which one a walk opens once it is through with it; None: none."""
        self._opened_in: dict[Inode, Inode] = {}
        """By directory: which of those inside was opened last."""
        self._is_backwards = False

    def opened(self, directory: Node) -> None:
        """Note that a directory was opened."""
        inode, parent = directory.id, directory.parent
        before = self._opened_in.get(parent, inode)
        if before != inode and self._is_backwards != (inode < before):
            self._is_backwards = inode < before
            self._following.clear()
        if len(self._opened_in) >= MAX_REMEMBERED:
            self._opened_in.clear()
        self._opened_in[parent] = inode

    def after(self, inode: Inode, *, has_directories: bool) -> Inode | None:
        """Return which directory is opened next, now that *inode* has been read; None: nothing tells."""
        following = self._following_of(inode)
        if not has_directories:
            return following
        inside = self._nodes.look_ahead(inode)
        if inside:
            if self._is_backwards:
                inside.reverse()
            self._note([*inside, following])
        else:
            inside = self._nodes.directories_in(inode, backwards=self._is_backwards, limit=SOME)
            self._note(inside)
        return inside[0] if inside else following

    def _following_of(self, inode: Inode) -> Inode | None:
        """Return the next directory outside of one: beside it or beside one that it is in."""
        nodes, following = self._nodes, self._following
        while inode not in following:
            node = nodes.get(inode)
            if node is None or node.is_detached or inode == ROOT:
                return None
            parent = node.parent
            beside = nodes.directories_in(
                parent, after=inode, backwards=self._is_backwards, limit=SOME
            )
            if beside:
                self._note([inode, *beside])
            else:
                inode = parent
        return following.pop(inode)

    def _note(self, walked: Sequence[Inode | None]) -> None:
        if len(self._following) >= MAX_REMEMBERED:
            self._following.clear()
        self._following.update(
            (one, following) for one, following in pairwise(walked) if one is not None
        )
