# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Copies to S3 with the rights that docs/backup.md gives to the NAS and to the controller."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import backup_prune
from copies import Nas, listing
from s3 import NAS, OWNER, PRUNER, S3

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("NAS_ASSISTANT_FULL"), reason="one of those that make test-full runs"
    ),
    pytest.mark.skipif(not shutil.which("go"), reason="there is no Go to compile a server with"),
]
DOCS = Path(__file__).parents[2] / "docs/backup.md"


@pytest.fixture
def s3(folder: Path) -> Iterator[S3]:
    (documented,) = re.findall(r"```json\n(.*?)```", DOCS.read_text(), re.DOTALL)
    mine = json.loads(documented.replace("BUCKET", S3.bucket).replace("FOLDER", "nas1"))
    # All of the bucket, but no old versions.
    what = [f"arn:aws:s3:::{S3.bucket}", f"arn:aws:s3:::{S3.bucket}/*"]
    may = ["ListBucket", "GetBucketLocation", "GetObject", "PutObject", "DeleteObject"]
    prune = {"Effect": "Allow", "Action": [f"s3:{each}" for each in may], "Resource": what}
    server = S3(folder / "s3")
    try:
        server.prepare({NAS: mine["Statement"], PRUNER: [prune]})
        yield server
    finally:
        server.stop()


@pytest.fixture
def nas_with_s3(nas: Nas, s3: S3) -> Nas:
    nas.settings["copies"][0] |= {
        "repository": f"s3:http://{s3.address}/{s3.bucket}/nas1",
        "environment": NAS.environment,
    }
    return nas


def test_made_drilled_and_restored(nas_with_s3: Nas, s3: S3) -> None:
    nas = nas_with_s3
    before = listing(nas.documents)
    for _ in range(2):
        nas.run("run", "offsite")
    assert len(nas.points("offsite")) == 2
    assert "proven" in nas.run("drill", "offsite")
    shutil.rmtree(nas.documents / "letters")
    (restored,) = nas.restore("offsite", sources=["tank/documents"])["restored"]
    assert listing(nas.pool / ".snapshots" / restored["snapshot"]) == before
    nas.settings["copies"][0]["environment"] = {**NAS.environment, "AWS_SECRET_ACCESS_KEY": "x"}
    nas.fails("refused", "run", "offsite")
    s3.stop()
    nas.fails("unreachable", "run", "offsite")


def test_what_the_nas_may_do_there_destroys_nothing(nas_with_s3: Nas, s3: S3) -> None:
    nas = nas_with_s3
    nas.run("run", "offsite")
    kept = [key for key in s3.listed() if "/locks/" not in key]
    assert {key.split("/")[1] for key in kept} == {"config", "data", "index", "keys", "snapshots"}
    for key in kept:
        assert s3.ask(NAS, "DELETE", f"{s3.bucket}/{key}")[0] == 403, key
        (version,) = s3.versions(key)
        assert s3.ask(NAS, "DELETE", f"{s3.bucket}/{key}?versionId={version}")[0] == 403, key
    off = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"
    assert s3.ask(NAS, "PUT", f"{s3.bucket}?versioning=", off)[0] == 403
    assert s3.ask(NAS, "PUT", f"{s3.bucket}/elsewhere", "junk")[0] == 403
    # Overwriting cannot be forbidden there. It is found, and the bucket has what was before.
    data = [key for key in kept if "/data/" in key]
    for key in data:
        assert s3.ask(NAS, "PUT", f"{s3.bucket}/{key}", "junk")[0] == 200
    nas.fails("damaged", "drill", "offsite")
    for key in data:
        newest, oldest = s3.versions(key)
        assert s3.ask(NAS, "DELETE", f"{s3.bucket}/{key}?versionId={oldest}")[0] == 403
        assert s3.ask(OWNER, "DELETE", f"{s3.bucket}/{key}?versionId={newest}")[0] in (200, 204)
    assert "proven" in nas.run("drill", "offsite")


def test_the_controller_prunes_with_a_key_of_its_own(
    nas_with_s3: Nas, s3: S3, call: Callable[..., dict[str, Any]]
) -> None:
    nas = nas_with_s3
    for _ in range(5):
        nas.run("run", "offsite")
    given = {
        "host": "nas1",
        "repository": nas.settings["copies"][0]["repository"],
        "password": "correct horse battery staple",
        "keep": {"last": 3},
    }
    refused = call(backup_prune.main, **given, environment=NAS.environment)
    assert refused.get("failed"), refused
    assert len(nas.points("offsite")) == 5
    done = call(backup_prune.main, **given, environment=PRUNER.environment)
    assert (len(done["kept"]), len(done["deleted"])) == (3, 2)
    assert len(nas.points("offsite")) == 3
    assert "proven" in nas.run("drill", "offsite")
