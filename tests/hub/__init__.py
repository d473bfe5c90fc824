"""A Hugging Face Hub for tests: a small ASGI server on loopback for the unmodified client.

    with TestHub.start(tmp_path) as hub:
        sha = hub.create_repo("team/model", {"config.json": b"{}"})
        api = HfApi(endpoint=hub.endpoint, token=hub.tokens["alice"])

Modules
    server          `TestHub`, the only thing a test needs
    accounts        users, organisations and tokens, as tables
    repositories    commits, references, discussions, as values
    store, objects  all repositories; their content on disk
    cas, xorb       the Xet store over HTTP; its binary formats
    traffic         the request log and the faults
    site            state and permissions, shared by the routes
    reads, content, commits, lfs, discussions, management    the routes
    metadata        how the Hub reads a model card

Routes ({t} is models, datasets or spaces; {id} is namespace/name; {rev} is one quoted segment)
    GET    /api/whoami-v2, /api/{t}, /api/{t}/{id}, /api/{t}/{id}/revision/{rev}
    GET    /api/{t}/{id}/ tree/{rev}[/{path}], refs, commits/{rev}, auth-check[/write]
    POST   /api/{t}/{id}/paths-info/{rev}
    HEAD, GET  [/{t}]/{id}/resolve/{rev}/{path}, with Range
    GET    /api/{t}/{id}/ xet-read-token/{rev}, xet-write-token/{rev}
    POST   /api/{t}/{id}/ preupload/{rev}, commit/{rev} (both with ?create_pr=1)
    POST, DELETE  /api/{t}/{id}/ branch/{rev}, tag/{rev}
    GET, POST     /api/{t}/{id}/ discussions, discussions/{n}[/comment|status|title|merge]
    POST   /api/repos/create, /api/repos/move, /api/validate-yaml; DELETE /api/repos/delete
    PUT    /api/{t}/{id}/settings; POST .../user-access-request/grant, .../lfs-files/duplicate
    POST   [/{t}]/{id}.git/info/lfs/objects/batch; PUT and POST /_lfs/...
    /_cas/ v1/xorbs, v1/shards, v1/reconstructions, xorb-data
    GET    /_cdn/{sha256}, at the second origin
Everything else is 404, `/api/agent-harnesses` and the newer routes of the Xet store among it.

Traps
    * `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_DISABLE_XET` are read when `huggingface_hub` is imported.
      In this process pass `endpoint=`, `token=` and `cache_dir=`; everything else, Xet above all,
      belongs in a subprocess with `hub.environment(home)`.
    * A `home` serves one Hub: hf_xet remembers what it uploaded, and would skip it at the next.
    * The client repeats 408, 429 and 5xx up to five times within ~23 s; use `times=1`, or a 4xx.
    * `upload_folder(create_pr=True)` over Xet opens a draft and pushes to `refs/pr/N`; over LFS,
      and with `create_commit`, the pull request comes with the commit and is open.
    * When no file changed there is no commit and no pull request, and `pr_url` is None.
    * The files of a new repository include `.gitattributes`.

Not here: buckets, collections, likes, webhooks, paging of trees and commits, `.gitignore` rules,
`squash`, `safetensors` and `evalResults` in the info of a model, conflicts of pull requests,
repositories without a namespace (404), and quotas.
"""

from .repositories import Commit, Entry
from .server import PullRequest, TestHub
from .site import Options
from .traffic import Fault, RequestRecord

__all__ = ["Commit", "Entry", "Fault", "Options", "PullRequest", "RequestRecord", "TestHub"]
