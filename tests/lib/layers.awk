# Do includes only go down? `under`: a folder; `order`: names of what stands in it (folders, or files without ending), from the ground up.
# Every file given has to stand somewhere in that order, and includes only what stands there before it or beside it.
function name_of(path) {
    path = substr(path, length(under) + 1)
    sub(/[\/.].*/, "", path)
    return path
}
BEGIN {
    count = split(order, names, " ")
    for (i = 1; i <= count; i++)
        height[names[i]] = i
}
FNR == 1 {
    self = name_of(FILENAME)
    if (!height[self]) {
        print "layers: " FILENAME ": " under " has no place for it"
        bad = 1
    }
}
/^#include "/ {
    path = $2
    gsub(/"/, "", path)
    if (index(path, under) == 1 && height[name_of(path)] > height[self]) {
        print "layers: " FILENAME ": " path " stands above it"
        bad = 1
    }
}
END { exit bad }
