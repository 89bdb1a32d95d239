# Runs the parts of the script that sources this, and exits. Arguments: the parts, or --alone PART.
#
# The script has the functions `run` (a part, named by `part`) and `limit` (of a part, in seconds),
# a folder `out`, and in `command` its own arguments in front of the parts. A part that left
# OUT/PART.pass is skipped; every other has a process of its own that can be stopped. LIMIT, if set,
# is every part's; TAIL, how many lines of a log are shown.

if [ "${1:-}" = --alone ]; then
  part=$2
  run
  exit
fi

rows=()
status=0
for part in "$@"; do
  if [ -e "$out/$part.pass" ]; then
    rows+=("$part  PASS  (earlier)")
    continue
  fi
  began=$SECONDS
  timeout -k 5 "${LIMIT:-$(limit "$part")}" bash "$0" "${command[@]}" --alone "$part" >"$out/$part.log" 2>&1
  rc=$?
  verdict=PASS
  [ $rc = 0 ] && touch "$out/$part.pass"
  [ $rc != 0 ] && verdict="FAIL ($rc)" && status=1
  [ $rc = 124 ] && verdict="FAIL (time)"
  rows+=("$part  $verdict  $((SECONDS - began)) s")
  echo "== ${rows[-1]}"
  grep -v -e "^==*$" -e COMPUTE-SANITIZER "$out/$part.log" | tail -n "${TAIL:-40}" | cut -c1-220
done
echo
printf '%s\n' "${rows[@]}"
exit $status
