import pytest
import sqlalchemy
from postgresql import Unavailable, server


@pytest.fixture(scope="module")
def postgresql():
    try:
        with server() as running:
            yield running
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_data_outlive_a_restart_of_the_server(postgresql):
    engine = sqlalchemy.create_engine(postgresql.create("restarted"), pool_pre_ping=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (n integer)")
        connection.exec_driver_sql("INSERT INTO numbers VALUES (7)")
    postgresql.stop()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="failed: No such file"), engine.connect():
        pass
    postgresql.start()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT n FROM numbers").scalar_one() == 7
    engine.dispose()
