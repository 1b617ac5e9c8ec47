# Compares what PROGRAM prints with the file EXPECTED. A line that changed breaks programs that were built before.
execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE found RESULT_VARIABLE code)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${code}")
endif()
file(READ ${EXPECTED} expected)
if(NOT found STREQUAL expected)
  message(FATAL_ERROR "the public layout is not that of ${EXPECTED}; it is now:\n${found}")
endif()
