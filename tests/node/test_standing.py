"""What a node knows of its cluster before its chain can tell: which incarnation it belongs to."""

from __future__ import annotations

import shutil
from random import Random
from typing import TYPE_CHECKING

import pytest

from consensus.changes import Change, ChangeKind, change_transaction
from consensus.membership import Member, genesis_of
from consensus.roster import Roster
from node.cli_errors import ExitCode
from node.cli_run import exit_code_of
from node.identity import Identity
from node.outcomes import LostChainError
from node.standing import Invitation, Standing, open_chain
from tests.node.real_nodes import cluster_folders
from tests.storage.builders import Author, make_genesis, make_key

if TYPE_CHECKING:
    from pathlib import Path

    from consensus.block import Block

NEW = Member("n2", bytes(make_key(8).verify_key), "127.0.0.1:7002", "127.0.0.1:8002")


class Story:
    """A chain to which a member was added, and in which the first one then went on alone."""

    def __init__(self) -> None:
        self.author = Author()
        self.roster = Roster(self.author.genesis)
        self.added = self.change(ChangeKind.ADD, NEW)
        self.recovered = self.change(ChangeKind.RECOVER, genesis_of(self.author.genesis).members[0])

    def change(self, kind: ChangeKind, member: Member) -> Block:
        """Seal a change."""
        raw = change_transaction(
            Change(kind, member), self.roster.latest, change_id=Random(kind).randbytes(16)
        )
        block = self.author.seal([raw])
        self.roster.append(block)
        return block


def standing(story: Story, incarnation: bytes) -> Standing:
    """A node that was invited to an incarnation."""
    genesis = genesis_of(story.author.genesis)
    invitation = Invitation(incarnation, 7, genesis.members)
    return Standing(Identity.of(make_key(9)), genesis, invitation, None)


def test_an_invitation_counts_until_the_chain_has_come_to_its_incarnation() -> None:
    """A node that restarts half-way must still be understood by those that it fetches from."""
    story = Story()
    invited = standing(story, story.recovered.hash)
    blocks = [story.added, story.recovered]
    seen = [invited.incarnation(Roster(story.author.genesis, blocks[:n])) for n in range(3)]
    assert [story.recovered.hash] * 3 == seen


def test_an_old_invitation_is_forgotten() -> None:
    """A node that goes on alone belongs to the incarnation that it begins."""
    story = Story()
    invited = standing(story, story.author.genesis.hash)
    assert story.recovered.hash == invited.incarnation(story.roster)


def test_a_key_whose_chain_is_gone_is_refused(tmp_path: Path) -> None:
    """It would have forgotten its votes; the message says how to come back."""
    config = cluster_folders(tmp_path, 1)[0]
    open_chain(config, make_genesis()).close()
    shutil.rmtree(config.chain_dir)
    with pytest.raises(LostChainError, match="bitnexus member remove node1") as refused:
        open_chain(config, make_genesis())
    assert ExitCode.LOST_CHAIN == exit_code_of(refused.value)
