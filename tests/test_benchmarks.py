"""What is run only now and then still works."""

from benchmarks import gpu


def test_what_is_checked_on_a_gpu_can_be_checked_on_a_cpu(capsys):
    assert gpu.main(["--check", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("\nok ") == len(gpu.CHECKS)
