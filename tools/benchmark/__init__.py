"""The parts of tools/bench, in reading order:

processes   commands, and servers from their start to their end
bench       what all parts share: sizes, the scratch folder, results, progress
peers       the servers that are compared, over the same data
turns       runs in turns (A B A B ...), medians, ratios and their spread
over_nbd    one run of a client; the rows of the parts `lean` and `fio`
flushes     the part `flush`
programs    the parts `engine` and `store`: programs that print their own figures
operations  create, clone, snapshot, commit, import, dump
scale       connections, layers, sizes, many volumes
attach      block devices
machine     what it all ran on
report      docs/performance.md out of the results; wanted and charts are its halves
"""
