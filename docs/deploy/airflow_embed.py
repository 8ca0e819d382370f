"""Four shares of one job whose output is on a store, as mapped tasks of Airflow; a share that fails is run again."""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

SHARES = 4
COMMAND = (
    "embedctl batch run 's3://bucket/tickets/*.parquet' -o s3://bucket/tickets-embedded "
    "-m openai:text-embedding-3-small --shard $SHARE --no-wait --max-cost 40 --no-progress"
)

with DAG("embed_tickets", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None, catchup=False):
    shares = BashOperator.partial(
        task_id="share",
        bash_command=f"{COMMAND} || test $? -eq 75",  # 75: its share is done, others are not
        append_env=True,
        retries=10,
        retry_delay=timedelta(minutes=1),
    ).expand(env=[{"SHARE": f"{index}/{SHARES}"} for index in range(SHARES)])
    finish = BashOperator(task_id="finish", bash_command="embedctl batch finish s3://bucket/tickets-embedded")
    shares >> finish
