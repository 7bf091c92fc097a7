"""Volume attachments, awaited."""

from __future__ import annotations

from cloudcore import AttachmentManager
from cloudcore.aio.facade import ClosingFacade, offloaded

__all__ = ["AsyncAttachmentManager"]


class AsyncAttachmentManager(ClosingFacade[AttachmentManager]):
    """An :class:`~cloudcore.AttachmentManager` whose calls are awaited, each to its end even when cancelled."""

    @offloaded(AttachmentManager.attach)
    def attach(self) -> None: ...

    @offloaded(AttachmentManager.reserve)
    def reserve(self) -> None: ...

    @offloaded(AttachmentManager.plan_attach)
    def plan_attach(self) -> None: ...

    @offloaded(AttachmentManager.detach)
    def detach(self) -> None: ...

    @offloaded(AttachmentManager.terminate)
    def terminate(self) -> None: ...

    @offloaded(AttachmentManager.set_delete_on_termination)
    def set_delete_on_termination(self) -> None: ...

    @offloaded(AttachmentManager.swap_volume)
    def swap_volume(self) -> None: ...

    @offloaded(AttachmentManager.plan_swap)
    def plan_swap(self) -> None: ...

    @offloaded(AttachmentManager.extend)
    def extend(self) -> None: ...

    @offloaded(AttachmentManager.begin_move)
    def begin_move(self) -> None: ...

    @offloaded(AttachmentManager.confirm_move)
    def confirm_move(self) -> None: ...

    @offloaded(AttachmentManager.revert_move)
    def revert_move(self) -> None: ...

    @offloaded(AttachmentManager.refresh)
    def refresh(self) -> None: ...

    @offloaded(AttachmentManager.refresh_host)
    def refresh_host(self) -> None: ...

    @offloaded(AttachmentManager.rebuild)
    def rebuild(self) -> None: ...

    @offloaded(AttachmentManager.snapshot)
    def snapshot(self) -> None: ...

    @offloaded(AttachmentManager.move)
    def move(self) -> None: ...

    @offloaded(AttachmentManager.recover)
    def recover(self) -> None: ...

    @offloaded(AttachmentManager.audit)
    def audit(self) -> None: ...

    @offloaded(AttachmentManager.heal)
    def heal(self) -> None: ...

    @offloaded(AttachmentManager.attachment)
    def attachment(self) -> None: ...

    @offloaded(AttachmentManager.attachments)
    def attachments(self) -> None: ...

    @offloaded(AttachmentManager.story)
    def story(self) -> None: ...

    @offloaded(AttachmentManager.prune)
    def prune(self) -> None: ...

    @offloaded(AttachmentManager.status)
    def status(self) -> None: ...

    @offloaded(AttachmentManager.check)
    def check(self) -> None: ...
