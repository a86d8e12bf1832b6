#!/usr/bin/env bash
# Refuses a commit message whose subject is longer than 72 characters, because lists of commits fold
# or wrap it. A commit-msg hook (.pre-commit-config.yaml), called with the file of the message:
#
#     tools/commit_subject.sh FILE
set -euo pipefail
export LC_ALL=C.UTF-8  # characters are counted, not bytes

subject=$(sed -n '/^#/!{/./{p;q;}}' "$1")  # git drops the comments and empty lines before it
[[ $subject =~ ^(fixup|squash|amend)!\ (.*)$ ]] && subject=${BASH_REMATCH[2]}
if ((${#subject} > 72)); then
  echo "the subject has ${#subject} characters, at most 72 are allowed: reasons and measurements" >&2
  echo "belong in the body" >&2
  exit 1
fi
