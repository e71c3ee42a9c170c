"""Airflow 3 DAGs: tokenize, verify and gc every night, backfill every hour.

Copy this file into the DAG folder; it imports nothing but Airflow, and runs `semid`, installed in
an environment of its own, through Bash. Everything that differs between installations is an Airflow
Variable (or, as usual, an environment variable AIRFLOW_VAR_SEMID_ROOT and so on):

  semid_catalog       globs of the catalog, separated by blanks; required
  semid_root          where IDs are published; required
  semid_config        YAML configuration; none by default
  semid_options       further options of tokenize and backfill, such as --runner=DataflowRunner ...
  semid_command       the command; default `semid`
  semid_keep          generations that gc keeps; default 7
  semid_feast_repo    Feast repository to bring up to date after each publication; none by default

Of two runs that publish to one root at once the one that finishes second is refused. So all tasks
share a pool of one slot, which has to be made once:

  airflow pools set semid 1 "one run of semid at a time"
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

REFUSALS = [2, 3, 4, 5]
"""Exit codes that the same inputs give again: bad configuration, refused input, a quality gate,
a mismatch with what is published."""

_SETTINGS = {
    "SEMID": "{{ var.value.get('semid_command', 'semid') }}",
    "CATALOG": "{{ var.value.semid_catalog }}",
    "ROOT": "{{ var.value.semid_root }}",
    "CONFIG": "{{ var.value.get('semid_config', '') }}",
    "OPTIONS": "{{ var.value.get('semid_options', '') }}",
    "KEEP": "{{ var.value.get('semid_keep', '7') }}",
    "FEAST_REPO": "{{ var.value.get('semid_feast_repo', '') }}",
    # A retried task stamps rows with the same time and so resumes its own run. A run that was
    # started by hand has no logical date.
    "AS_OF": "{{ (dag_run.logical_date or dag_run.run_after).isoformat() }}",
}
# set -f: semid expands the globs itself, also on gs://.
_JOB = (
    'set -f; exec "$SEMID" {command} --quiet --catalog $CATALOG --root "$ROOT" --as-of "$AS_OF"'
    ' ${{CONFIG:+--config "$CONFIG"}} $OPTIONS'
)
_SYNC = '[ -n "$FEAST_REPO" ] || exit 99; exec "$SEMID" feast --root "$ROOT" --repo "$FEAST_REPO"'


class SemidOperator(BashOperator):
    """Runs a semid command; a refusal fails without a retry, anything else may be tried again."""

    def execute(self, context: Context) -> str:
        """Runs the command, and turns what Bash's exit code would skip into a final failure."""
        try:
            return super().execute(context)
        except AirflowSkipException as refusal:
            raise AirflowFailException(f"semid refused; its log says why: {refusal}") from refusal


def semid(task: str, command: str, hours: float, retries: int) -> SemidOperator:
    """Returns a task that runs a semid command.

    Args:
      task: its id.
      command: for Bash; settings are environment variables.
      hours: it may take.
      retries: after a crash, a lost connection, or another run that published first.
    """
    return SemidOperator(
        task_id=task,
        bash_command=command,
        env=_SETTINGS,
        append_env=True,
        skip_on_exit_code=REFUSALS,
        execution_timeout=timedelta(hours=hours),
        retries=retries,
        retry_delay=timedelta(minutes=10),
        pool="semid",
    )


def feast() -> BashOperator:
    """Returns a task that synchronises the feature store, skipped where there is none."""
    return BashOperator(
        task_id="feast",
        bash_command=_SYNC,
        env=_SETTINGS,
        append_env=True,
        execution_timeout=timedelta(hours=2),
        retries=2,  # an interrupted run is finished by the next
        retry_delay=timedelta(minutes=10),
        pool="semid",
    )


with DAG(
    "semid_nightly",
    description="Publish semantic IDs of the whole catalog, check them, drop old generations.",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # the catalog is what it is now, whatever the date
    max_active_runs=1,
    tags=["semid"],
) as nightly:
    # Resumes at the last complete link, so a retry repeats little.
    tokenize = semid("tokenize", _JOB.format(command="tokenize"), hours=12, retries=3)
    # Reads only. Exit code 1 is also a broken invariant, which another look does not mend.
    verify = semid("verify", 'exec "$SEMID" verify --root "$ROOT"', hours=4, retries=1)
    # Old generations go only once the new one is known to be sound.
    gc = semid("gc", 'exec "$SEMID" gc --root "$ROOT" --keep "$KEEP"', hours=1, retries=2)
    tokenize >> verify >> [gc, feast()]

with DAG(
    "semid_hourly",
    description="Give new and changed items their IDs between two nights.",
    schedule="15 * * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["semid"],
) as hourly:
    backfill = semid("backfill", _JOB.format(command="backfill"), hours=1, retries=2)
    backfill >> feast()
