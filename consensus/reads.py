"""The linearizable reads that a follower has asked its leader for (ReadIndex, dissertation §6.4).

Relies on nothing. The tokens that travel are counted from a base of this member's present life, so
that a late reply to a read of the life before a restart answers none of this one.
"""

from __future__ import annotations


class AskedReads:
    """Reads under way to the leader, by the caller's tokens, which rise from call to call."""

    def __init__(self, base: int) -> None:
        """`base` must not repeat itself from one start of the member to the next."""
        self._base = base
        self._tokens: list[int] = []

    def ask(self, token: int) -> int:
        """Notes a read; the token to send for it."""
        assert not self._tokens or token > self._tokens[-1], "tokens rise from call to call"
        self._tokens.append(token)
        return self._base + token

    def answered(self, sent_token: int) -> list[int]:
        """The reads that a reply answers.

        A read index confirmed for a later request holds for the earlier ones as well, so one whose
        request or reply was lost is answered with the next that gets through.
        """
        token = sent_token - self._base
        if token not in self._tokens:
            return []
        confirmed = [asked for asked in self._tokens if asked <= token]
        self._tokens = self._tokens[len(confirmed) :]
        return confirmed

    def lose(self) -> list[int]:
        """Gives all of them up."""
        lost, self._tokens = self._tokens, []
        return lost
