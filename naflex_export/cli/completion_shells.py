"""What a shell is told so that it asks a program at its Tab key: as click has it, but for three things.

In bash folders may be offered beside words; in fish a word may hold a comma (`onnx,trt`); and in all of them what
follows the `=` of `--target=onnx` is completed by itself.
"""

from __future__ import annotations

from click.shell_completion import BashComplete, FishComplete, ZshComplete, add_completion_class

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read type value <<< "$completion"
        case $type in
            dir) compopt -o filenames -o plusdirs ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a words_alone words_described response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete %(prog_name)s)}")
    [[ $PREFIX == --*=* ]] && compset -P '*='
    for type key descr in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ "$descr" == "_" ]]; then
                    words_alone+=("$key")
                else
                    words_described+=("$key":"$descr")
                fi ;;
        esac
    done
    if [ -n "$words_described" ]; then
        _describe -V unsorted words_described -U -i "$IPREFIX"
    fi
    if [ -n "$words_alone" ]; then
        compadd -U -i "$IPREFIX" -V unsorted -a words_alone
    fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
function %(complete_func)s
    set -l word (commandline -t)
    set -l option (string match --regex -- '^--[^=]*=' $word)
    set -l rest (string replace --regex -- '^--[^=]*=' '' $word)
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=$word %(prog_name)s)
    for completion in $response
        set -l answer (string split --max 1 "," -- $completion)
        switch $answer[1]
            case dir
                __fish_complete_directories $rest | string replace --regex -- '^' "$option"
            case file
                __fish_complete_path $rest | string replace --regex -- '^' "$option"
            case plain
                echo "$option$answer[2]"
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


@add_completion_class
class Bash(BashComplete):
    """Bash, to which `--target=onnx` is three words."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one at the cursor, and that one, without the `=` between an option and it."""
        args, incomplete = super().get_completion_args()
        return (args[:-1], incomplete) if args and args[-1] == "=" else (args, incomplete)


@add_completion_class
class Zsh(ZshComplete):
    """Zsh, which is told what goes behind an option's `=`, and what stands ahead of it to be left as it is."""

    source_template = _ZSH


@add_completion_class
class Fish(FishComplete):
    """Fish, which is given whole words, with the option and the `=` ahead of them."""

    source_template = _FISH
