"""Volume attachments, awaited."""

from __future__ import annotations

from cloudcore import AttachmentManager
from cloudcore.aio.facade import ClosingFacade, offloaded

__all__ = ["AsyncAttachmentManager"]


class AsyncAttachmentManager(ClosingFacade[AttachmentManager]):
    """An :class:`~cloudcore.AttachmentManager` whose calls are awaited, each to its end even when cancelled."""

    attach = offloaded(AttachmentManager.attach)
    reserve = offloaded(AttachmentManager.reserve)
    plan_attach = offloaded(AttachmentManager.plan_attach)
    detach = offloaded(AttachmentManager.detach)
    terminate = offloaded(AttachmentManager.terminate)
    set_delete_on_termination = offloaded(AttachmentManager.set_delete_on_termination)
    swap = offloaded(AttachmentManager.swap)
    extend = offloaded(AttachmentManager.extend)
    begin_move = offloaded(AttachmentManager.begin_move)
    confirm_move = offloaded(AttachmentManager.confirm_move)
    revert_move = offloaded(AttachmentManager.revert_move)
    refresh = offloaded(AttachmentManager.refresh)
    move = offloaded(AttachmentManager.move)
    recover = offloaded(AttachmentManager.recover)
    audit = offloaded(AttachmentManager.audit)
    heal = offloaded(AttachmentManager.heal)
    attachment = offloaded(AttachmentManager.attachment)
    attachments = offloaded(AttachmentManager.attachments)
    story = offloaded(AttachmentManager.story)
