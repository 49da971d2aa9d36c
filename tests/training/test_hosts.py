"""Who is missing, who was told what; in threads. Real processes are in test_many_processes.py."""

import doctest
import queue
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from codet5p_jax.training import cluster, hosts, roll_call
from codet5p_jax.training.cluster import Cluster


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(port, numbers, of, timeout):
    """What the roll call returns or raises in each of the processes, played by threads."""
    outcomes = {}

    def one(key, number, of):
        try:
            lines, names = roll_call.roll_call(Cluster(f"localhost:{port}", of, number), timeout)
            outcomes[key] = names
            for line in lines.values():
                line.socket.close()
        except Exception as error:
            outcomes[key] = error

    sizes = of if isinstance(of, list) else [of] * len(numbers)
    threads = [
        threading.Thread(target=one, args=(i, number, size))
        for i, (number, size) in enumerate(zip(numbers, sizes, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [outcomes[i] for i in range(len(numbers))]


def test_all_learn_the_names_of_all(port):
    host = socket.gethostname()
    expected = [f"process {i} ({host})" for i in range(3)]
    assert together(port, [2, 0, 1], 3, 10) == [expected] * 3


def test_what_comes_with_the_last_word_of_the_roll_call_is_not_lost(port):
    """Process 0 may have done its part at once: both messages arrive together."""
    with socket.create_server(("localhost", port)) as server:

        def first():
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b'{"go": ["process 0", "process 1"]}\n{"done": true}\n')
                connection.recv(1024)  # until the other leaves
                connection.sendall(b'{"bye": true}\n')

        threading.Thread(target=first, daemon=True).start()
        lines, names = roll_call.roll_call(Cluster(f"localhost:{port}", 2, 1), 10)
        party = hosts.Party(1, names, lines, lambda: None)
        waits = threading.Thread(target=party.first, args=(lambda: None, None), daemon=True)
        waits.start()
        waits.join(10)
        assert not waits.is_alive()
        party.leave()
        lines[0].socket.close()


def test_a_stranger_on_the_port_is_passed_over(port):
    def knock():
        for _ in range(50):
            try:
                with socket.create_connection(("localhost", port), timeout=1) as line:
                    line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except OSError:
                time.sleep(0.05)

    stranger = threading.Thread(target=knock)
    stranger.start()
    names = together(port, [0, 1], 2, 10)
    stranger.join()
    assert names[0] == names[1] != []


def test_those_who_are_missing_are_named_to_all(port, monkeypatch, capfd):
    monkeypatch.setattr(roll_call, "NOTICE", 1)
    zero, three = together(port, [0, 3], 5, 2)
    assert "processes 1, 2, 4 of 5 have not come within 2 s (--join_timeout)" in str(zero)
    assert str(three).endswith(str(zero)), "process 0 tells the others"
    assert isinstance(zero, OSError)
    assert "waiting for all processes: after" in capfd.readouterr().err


def test_those_who_are_missing_are_named_by_host_where_that_is_known():
    known = Cluster("a:1", 3, 0, hosts=("a", "b", "c"))
    assert roll_call._missing({0: {}}, known) == "processes 1 (b), 2 (c) of 3 have"
    assert roll_call._missing({0: {}, 2: {}}, known) == "process 1 (b) of 3 has"


def test_process_0_is_not_missing_where_it_has_answered(port, monkeypatch, capfd):
    """Process 1 is there first, and so has waited longer."""
    monkeypatch.setattr(roll_call, "NOTICE", 2)
    call = roll_call._call

    def late(*args):
        time.sleep(1)
        return call(*args)

    monkeypatch.setattr(roll_call, "_call", late)
    outcomes = together(port, [0, 1], 3, 3)
    for outcome in outcomes:
        assert "process 2 of 3 has not come within 3 s" in str(outcome)
    assert "process 0" not in capfd.readouterr().err


def test_a_missing_process_0_is_named(port):
    [error] = together(port, [1], 2, 1)
    assert f"process 0 at localhost:{port} has not answered within 1 s" in str(error)


def test_two_processes_of_one_number_are_an_error(port):
    outcomes = together(port, [0, 1, 1], 3, 10)
    assert any("two processes came as process 1" in str(x) for x in outcomes[1:])
    assert "give each a --process_id of its own" in str(outcomes[0])


def test_different_numbers_of_processes_are_an_error(port):
    zero, _ = together(port, [0, 1], [2, 3], 3)
    assert "--num_processes is 2 here" in str(zero)
    assert "came as one of 3" in str(zero)


def test_a_port_that_is_taken_is_an_error(port):
    with socket.create_server(("", port)):
        [error] = together(port, [0], 2, 1)
    assert f"cannot listen on port {port}" in str(error)


def test_many_missing_are_counted():
    text = roll_call._missing({0: {}}, Cluster("a:1", 100, 0))
    assert text.startswith("processes 1, 2, ")
    assert text.endswith("20 and 79 more of 100 have")


def test_alone_there_is_nothing_to_wait_for():
    done = []
    with hosts.joined(None) as party:
        party.first(lambda: done.append(1), "never said")
    assert done == [1]


def test_what_takes_too_long_ends_the_process(monkeypatch):
    ended = queue.Queue()
    monkeypatch.setattr(hosts, "end", ended.put)
    deadline = hosts.Deadline(0.2)
    with deadline.of("no batch for step 3"):
        pass
    with deadline.of("no batch for step 4"):
        assert ended.get(timeout=5) == "no batch for step 4"
    deadline.close()


def test_a_cluster_is_found_as_told_or_not_at_all():
    assert cluster.find(None, None, None, 1, {}) is None
    assert cluster.find("node1:1234", 4, 3, 1, {}) == Cluster("node1:1234", 4, 3)
    assert Cluster("[::1]:80", 1, 0).address == ("::1", 80)
    for told, message in {
        ("node1:1234", None, None): "needs --num_processes=N and --process_id=I",
        ("node1", 2, 0): "expected HOST:PORT",
        ("node1:99999", 2, 0): "expected HOST:PORT",
        ("node1:1234", 2, 2): "from 0 to --num_processes - 1; found 2 of 2",
        (None, 2, None): "need --coordinator",
    }.items():
        with pytest.raises(ValueError, match=message):
            cluster.find(*told, 1, {})


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_one_of_several_does_not_train_alone(variables):
    [(name, value)] = variables.items()
    with pytest.raises(ValueError, match=rf"{name}={value}.*--coordinator=auto"):
        cluster.find(None, None, None, 1, variables)
    assert cluster.find(None, None, None, 1, {name: "1"}) is None


def test_examples():
    assert doctest.testmod(cluster).failed == 0


def test_slurm_and_open_mpi_are_found(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert cluster.find("auto", None, None, 1) == Cluster("node3:61447", 2, 1, (0,))
    told = {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}  # which JAX reads where it is given none
    assert cluster.find("auto", None, None, 1, told) == Cluster("node3:61447", 2, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert cluster.find("auto", None, None, 1).hosts == ("node3", "node4")
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(ValueError, match="no Cloud TPU, GKE, SLURM or Open MPI"):
        cluster.find("auto", None, None, 1)
    for name, value in {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = cluster.find("auto", None, None, 1)
    assert (found.num_processes, found.process_id, found.local_device_ids) == (3, 2, (1,))
    assert found.coordinator.startswith("10.96.0.1:")


def test_devices_of_hosts_that_are_not_connected_are_an_error(monkeypatch):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 4)
    monkeypatch.setattr(hosts.jax, "distributed", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(RuntimeError, match=r"belong to 4 hosts.*--coordinator=auto"):
        hosts.check_joined()


def test_a_model_dir_of_this_host_alone_is_an_error(tmp_path):
    with pytest.raises(OSError, match="file system that all hosts share"):
        hosts.check_shared(tmp_path / "run.json", patience=0.1)
