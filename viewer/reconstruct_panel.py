"""Photos or a video from the browser to a scene: uploads, a few choices, a place in the queue, progress."""

from __future__ import annotations

from geometry.presets import PRESETS
from viewer.guard import limit_uploads
from viewer.jobs import Job, Request
from viewer.session import Session
from viewer.uploads import MEGABYTE, MOST_BYTES, MOST_FILES, Inbox

WEIGHTS = tuple(dict.fromkeys(("nano", *PRESETS)))
SIZES = ("252", "336", "504")
MOST_STEPS = 60  # of refinement
_LINES_SHOWN = 4
# Refused files are told in a notice each, but thousands of them not in thousands of notices.
_MOST_NOTICES = 5

# viser's upload button takes one file and follows one transfer. This area hands it each file that is dropped or chosen,
# the next when the button is free again; a file so small that the button is never seen busy is given 0.3 s.
_DROP_AREA = """
<label style="display:block;margin:0 .8em .6em;padding:1.1em;border:2px dashed #9ab;border-radius:6px;
  text-align:center;font-size:.85em;color:#567;cursor:pointer"
  ondragover="event.preventDefault()"
  ondrop="event.preventDefault();this.control.files=event.dataTransfer.files;
    this.control.dispatchEvent(new Event('change'))">
  Drop photos or a video here, or click to choose
  <input type="file" multiple accept="image/*,video/*" style="display:none" id="raysplat-photos" onchange="
    const files=[...this.files], input=[...document.querySelectorAll('input[id^=file_upload_]')].at(-1);
    const button=document.getElementById(input.id.replace('file_upload_',''));
    const free=() => new Promise(done => {
      const look=() => { if (!button.disabled) { watch.disconnect(); done(); } };
      const watch=new MutationObserver(look);
      watch.observe(button,{attributeFilter:['disabled']}); setTimeout(look,300);
    });
    (async () => {
      for (const file of files) {
        const one=new DataTransfer(); one.items.add(file); input.files=one.files;
        input.dispatchEvent(new Event('change',{bubbles:true})); await free();
      }
    })();
    event.stopPropagation(); this.value=''">
</label>
"""


def add_reconstruct_panel(session: Session) -> Inbox:
    """Build the panel; returns the tab's uploads, which are to be closed with the tab."""
    gui, action, app = session.client.gui, session.action, session.app
    inbox = Inbox()
    refused = {"files": 0}
    gui.add_html(_DROP_AREA)
    # One at a time, for browsers in which the area does not work.
    gui.add_upload_button("Add one file", mime_type="image/*,video/*", color="gray")
    uploaded = gui.add_markdown("")
    clear = gui.add_button("Remove the uploads", disabled=True, color="gray")
    weights = gui.add_dropdown("weights", WEIGHTS, initial_value="nano", hint="others are downloaded on first use")
    views = gui.add_slider("views", 0, 24, 1, 0, hint="how many photos the network sees; 0: all, at most 12")
    size = gui.add_dropdown("size", SIZES, initial_value="252", hint="long side that the network sees; more is slower")
    refine = gui.add_slider("refine", 0, MOST_STEPS, 5, 0, hint="steps on the photos after: sharper, slow on a CPU")
    start = gui.add_button("Reconstruct", color="blue", disabled=True)
    progress = gui.add_progress_bar(100.0, animated=True, visible=False)
    status = gui.add_markdown("")
    cancel = gui.add_button("Cancel", visible=False)

    def show_uploads() -> None:
        files = inbox.files
        names = ", ".join(label for _, label in files[:3]) + (", ..." if len(files) > 3 else "")
        limit = f"At most {MOST_FILES} photos or one video, {MOST_BYTES // MEGABYTE} MB in all."
        line = f"`{len(files)}` uploaded: `{names}`" if files else limit
        uploaded.content = line + (f"  \nrefused: `{refused['files']}`" if refused["files"] else "")
        start.disabled = clear.disabled = not files

    def refuse(reason: str) -> None:
        refused["files"] += 1
        if refused["files"] <= _MOST_NOTICES:
            session.complain(reason)
        show_uploads()

    def remove(_event) -> None:
        inbox.clear()
        refused["files"] = 0
        show_uploads()

    def reconstruct(_event) -> None:
        if weights.value not in WEIGHTS or size.value not in SIZES:
            raise ValueError("choose weights and size from the lists")
        source, count = inbox.source, min(max(int(views.value), 0), 64)
        name = f"reconstruction {app.next_number()}"
        upload, refused["files"] = inbox.release(), 0
        session.requested.add(name)
        steps = min(max(int(refine.value), 0), MOST_STEPS)
        request = Request(source, name, weights.value, count or None, int(size.value), app.job_device, steps)
        app.submit(request, upload)
        show_uploads()

    def job_changed(job: Job) -> None:
        last = "  \n".join(f"`{line}`" for line in job.lines[-_LINES_SHOWN:])
        waits = app.jobs.ahead(job)
        head = f"**{job.request.name}**: {job.status.split(': ')[0] if job.lines and not job.finished else job.status}"
        status.content = "  \n".join([head + (f", {waits} before it" if waits else ""), last])
        progress.visible = cancel.visible = not job.finished
        if job.state == "failed" and job.request.name in session.requested:
            session.complain(job.error)

    def cancel_job(_event) -> None:
        if app.current is not None:
            app.jobs.cancel(app.current)

    limit_uploads(session.client, inbox, lambda _label: show_uploads(), refuse)
    clear.on_click(action(remove))
    start.on_click(action(reconstruct))
    cancel.on_click(action(cancel_job))
    session.on_job.append(job_changed)
    show_uploads()
    if app.current is not None:
        job_changed(app.current)
    return inbox
