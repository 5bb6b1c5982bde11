#!/bin/sh
# The OCI runtime that dockerd calls as `transship`: runc, except for a container that a migration brings here, and for
# one that sleeps (agent/runtime/asleep.py).
# Builtins only and one exec, so that it costs a call about a millisecond. Installed by `transship setup`.
for word in "$@"; do id=$word; done
handover=/run/transship/handover/$id
asleep=/var/lib/transship/hibernated/$id
if [ -n "$id" ] && [ -f "$handover/plan.json" ]; then
    for word in "$@"; do
        case $word in
        create)
            # the images may still be on their way: this waits for them, then becomes `runc restore`
            exec @PYTHON@ -I -S @RUNTIME@/restore.py "$@" ;;
        start)
            # restored by `create`, every task stopped; the agent lets them go by the source's decision, not dockerd.
            # A restore that goes on is the agent's to wait for; one that fails is an end of the container
            if [ -f "$handover/restoring" ] && [ ! -f "$handover/restored" ] && [ -f "$handover/result.json" ]; then
                echo "transship: the restore failed" >&2
                exit 1
            fi
            { [ -f "$handover/restoring" ] || [ -f "$handover/restored" ]; } && exit 0 ;;
        exec)
            # a probe of its health, most likely: while the copy is held it could only fail, and would count
            while [ -f "$handover/plan.json" ]; do sleep 0.05; done ;;
        --*) ;;
        esac
    done
elif [ -n "$id" ] && { [ -d "$asleep" ] || [ -d "$asleep.waking" ]; }; then
    for word in "$@"; do
        case $word in
        create | start)
            exec @PYTHON@ -I -S @RUNTIME@/wake.py "$@" ;;
        esac
    done
fi
exec runc "$@"
