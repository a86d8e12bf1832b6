"""What a measurement belongs to, as the examples say it of theirs."""

from examples.driver.machine import commit as commit
from examples.driver.machine import cpu_name as cpu_name
from examples.driver.machine import git as git
